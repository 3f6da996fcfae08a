"""Launches of kernels over the window of a clip, as the operators' `cupy` backends make them.

Letters: B clips, C channels, T frames, H x W pixels, K window side.

All clips of a launch share the strides of ``x``: contiguous, folded frames and channels last go in as
they are, as does every other layout without gaps; a gradient in another layout than ``x`` is copied
first. Maps may have any strides and come out in the layout of ``x``. Sums run in float32 (float64 for
float64) and are rounded once. Every output is written by one thread, so results are deterministic.
Gradients of gradients are left to the reference backend.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from dtf.ops.common import runtime
from dtf.ops.common.source import VECTOR_BYTES, Variant, choose


def _same_layout(a: Tensor, b: Tensor) -> bool:
    # Where a size is 1 its stride is never used.
    return all(s == t for s, t, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size > 1)


def dense(x: Tensor) -> Tensor:
    """Returns ``x``, or a contiguous copy where its memory has gaps or overlaps."""
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != step:
                return x.contiguous()
            step *= size
    return x


def like(a: Tensor, x: Tensor) -> Tensor:
    """Returns ``a``, or a copy of it in the layout of ``x``."""
    return a if _same_layout(a, x) else torch.empty_like(x).copy_(a)


def new_maps(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Returns uninitialised maps (B, rows, T, H, W), their dimensions ordered in memory as those of ``x``."""
    order = sorted(range(5), key=x.stride, reverse=True)
    sizes = (x.shape[0], rows, *x.shape[2:])
    return torch.empty_permuted(sizes, order, dtype=dtype, device=x.device)


@functools.lru_cache(maxsize=4096)
def _plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    map_strides: tuple[tuple[int, ...], ...],
    aligned: bool,
    kernel_size: int,
    dilation: int,
    backward: bool,
) -> tuple[Variant, int, tuple[int, ...]]:
    """Returns a launch's variant, number of blocks, and arguments behind the pointers and flags."""
    batch, _, frames, height, width = shape
    variant = choose(dtype, shape, strides, map_strides, aligned, kernel_size)
    # Beyond the frame every off-centre pixel is outside, however far.
    dilation = min(dilation, max(height, width))
    pixels = variant.pixels_backward if backward else variant.pixels
    wide, tiles = variant.tile(height, width, dilation, pixels)
    numbers = [*strides, *(stride for each in map_strides for stride in each), *shape, dilation, wide]
    return variant, batch * frames * tiles, tuple(numbers)


def launch_window(
    kernels: Path,
    kernel: str,
    clips: list[Tensor],
    maps: list[Tensor],
    pointers: list[Tensor | None],
    flags: list[int],
    kernel_size: int,
    dilation: int,
    backward: bool = False,
) -> None:
    """Queues a kernel of ``window.cuh``'s parameters.

    Args:
        kernels: The operator's `.cu` file.
        kernel: Name of a kernel in it.
        clips: Tensors (B, C, T, H, W) that share their strides; the first one says what is compiled.
        maps: Tensors (B, rows, T, H, W) of any strides, in the order of the kernel's strides.
        pointers: Tensors in the order of the kernel's pointers; ``None`` is a null pointer.
        flags: Numbers that the kernel takes behind its pointers.
        kernel_size: Window side K.
        dilation: Distance of neighbouring window pixels.
        backward: Whether the kernel works in runs of ``PIXELS_BACKWARD``.
    """
    x = clips[0]
    assert all(_same_layout(clip, x) for clip in clips), "clips of a launch share their strides"
    aligned = not any(clip.data_ptr() % VECTOR_BYTES for clip in clips)
    strides = tuple(x.stride())
    plan = _plan(
        x.dtype,
        tuple(x.shape),
        strides,
        tuple(tuple(map_.stride()) for map_ in maps),
        aligned,
        kernel_size,
        dilation,
        backward,
    )
    variant, blocks, numbers = plan
    arguments = [0 if pointer is None else pointer.data_ptr() for pointer in pointers]
    arguments += [*flags, *numbers]
    runtime.launch(kernels, kernel, variant, blocks, arguments, x.device)
