"""Launches of kernels over bilinear samples (`sampling.cuh`), as the deformable operators make them.

Letters: B clips, C channels, T frames, H x W pixels, K window side.

The kernels take frames channels last; a clip in another layout is copied first. Results are deterministic:
what is spread over a frame is collected by the one warp that owns its rows and channels, without atomics.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from dtf.ops.common import runtime
from dtf.ops.common.source import VECTOR_BYTES, WARP, Variant, accumulator, choose

# Warps that the spread of gradients should keep busy, if the rows of its frames suffice.
_SPREAD_WARPS = 4096


def frames_of(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(B, C, T, H, W) -> (B, T, H, W, C) contiguous, in a dtype: a view where it is laid out so."""
    return x.permute(0, 2, 3, 4, 1).to(dtype or x.dtype).contiguous()


def maps_of(maps: Tensor) -> Tensor:
    """Maps (B, rows, T, H, W) as the kernels take them: (B, T, H, W, rows) in the accumulator's dtype."""
    return frames_of(maps, accumulator(maps.dtype))


def clip_of(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, H, W, C) -> (B, C, T, H, W) in channels_last_3d memory."""
    return frames.to(dtype).permute(0, 4, 1, 2, 3)


def variant_of(frames: Tensor, others: list[Tensor], kernel_size: int, groups: int = 1) -> Variant:
    """What the kernels are compiled for: frames (B, T, H, W, C), and others with channels of that dtype."""
    x = frames.permute(0, 4, 1, 2, 3)
    aligned = not any(each.data_ptr() % VECTOR_BYTES for each in (frames, *others))
    chosen = choose(x.dtype, tuple(x.shape), tuple(x.stride()), (), aligned, kernel_size)
    # The channels of a vector are of one group.
    if (x.shape[1] // groups) % chosen.vector:
        return dataclasses.replace(chosen, vector=1, lanes=WARP)
    return chosen


def launch_samples(
    kernels: Path,
    kernel: str,
    variant: Variant,
    pointers: list[Tensor | None],
    shape: torch.Size,
    dilation: int,
    groups: int,
    device: torch.device,
    *,
    spread: bool = False,
    works: int | None = None,
) -> None:
    """Queues a kernel.

    Args:
        kernels: The operator's `.cu` file.
        kernel: Name of a kernel in it.
        variant: What it is compiled for.
        pointers: Tensors in the order of the kernel's pointers; ``None`` is a null pointer.
        shape: (B, T, H, W, C) of the frames.
        dilation: Distance of neighbouring taps.
        groups: Groups G.
        device: Where all of that is.
        spread: Whether its warps own bands of rows, whose height it takes behind the pointers.
        works: Threads that have work; ``None``: a warp for each pixel (or band).
    """
    batch, frames, height, width, channels = shape
    warps = variant.threads // WARP
    arguments = [0 if pointer is None else pointer.data_ptr() for pointer in pointers]
    units = batch * frames * height * width
    if spread:
        chunks = batch * frames * -(-channels // (WARP * variant.vector))
        band = -(-height // max(1, min(height, _SPREAD_WARPS // max(1, chunks))))
        units = chunks * -(-height // band)
        arguments.append(band)
    blocks = -(-units // warps) if works is None else -(-works // variant.threads)
    arguments += [groups, batch, channels, frames, height, width, dilation]
    runtime.launch(kernels, kernel, variant, blocks, arguments, device)
