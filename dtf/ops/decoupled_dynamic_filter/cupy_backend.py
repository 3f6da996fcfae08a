"""Decoupled dynamic filter in CUDA C++ (kernels.cu) as a torch operator, with shapes and gradient.

Letters: B images, C channels, H x W pixels, K window side. An image is a clip of one frame to the kernels.
"""

# No postponed annotations here: torch reads them.
import dataclasses
import functools
from pathlib import Path

import torch

from dtf.ops.common import runtime
from dtf.ops.common.gradients import differentiate
from dtf.ops.common.launch import dense, like
from dtf.ops.common.source import VECTOR_BYTES, Variant, accumulator, choose

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")
_SCHEMA = "int kernel_size, int dilation, int stride, str combine"
# Pixels whose sums for the channels' filter are stored together: so many that the sums are few beside them,
# so few that a large image keeps a device busy.
_CHUNK_PIXELS = 128


def _new(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised (B, channels, height, width), its dimensions ordered in memory as those of ``x``."""
    order = sorted(range(4), key=x.stride, reverse=True)
    sizes = (x.shape[0], channels, height, width)
    return torch.empty_permuted(sizes, order, dtype=x.dtype, device=x.device)


def _taps(channel_filter: Tensor) -> Tensor:
    """(B, C, K, K) -> (B, K*K, C) contiguous."""
    return channel_filter.flatten(2).transpose(1, 2).contiguous()


def macros(stride: int, combine: str) -> tuple[tuple[str, int], ...]:
    """What kernels.cu is compiled for besides a variant of ops/common."""
    return (("ADD", int(combine == "add")), ("STRIDED", int(stride > 1)))


def _strides(x: Tensor) -> tuple[int, ...]:
    """Strides of the clip (B, C, 1, H, W) that ``x`` is."""
    batch, channels, height, width = x.stride()
    return batch, channels, 0, height, width


@functools.lru_cache(maxsize=4096)
def _plan(
    dtype: torch.dtype,
    x_shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    map_strides: tuple[int, ...],
    aligned: bool,
    size: tuple[int, int],
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> tuple[Variant, int, int, int, int]:
    """Returns (variant, runs side by side in a tile, tiles of an image, step of a run, distance of taps)."""
    batch, channels, height, width = x_shape
    shape = (batch, channels, 1, height, width)
    # The variant is that of the features, whose image is the larger one.
    chosen = choose(dtype, shape, x_strides, (map_strides,), aligned, kernel_size)
    variant = dataclasses.replace(chosen, own=macros(stride, combine))
    # Beyond the image every off-centre pixel is outside, however far.
    reach = min(dilation, max(height, width))
    step = reach if stride == 1 else 1
    wide, tiles = variant.tile(*size, step, variant.pixels)
    return variant, wide, tiles, step, reach


def _launch(
    kernel: str,
    pointers: list[Tensor],
    x: Tensor,
    over: Tensor,
    windows_of: Tensor,
    maps: Tensor,
    window: tuple[int, int, int, str],
    adjoint: bool = False,
    partial: bool = False,
) -> Tensor | None:
    """Queues a kernel.

    Args:
        kernel: Its name.
        pointers: What it takes ahead of its numbers.
        x: The features, or their gradient.
        over: Image over whose pixels its runs are counted.
        windows_of: Image from which it takes windows.
        maps: The pixels' filter, or its gradient.
        window: (kernel_size, dilation, stride, combine).
        adjoint: Whether windows lead from features to results.
        partial: Whether it stores sums over chunks of pixels, which are then returned: (B, chunks, K*K, C).
    """
    kernel_size, dilation, stride, combine = window
    batch, channels, height, width = over.shape
    wide_reads = [pointer for pointer in pointers if pointer is not maps]
    aligned = not any(pointer.data_ptr() % VECTOR_BYTES for pointer in wide_reads)
    variant, wide, tiles, step, reach = _plan(
        x.dtype,
        tuple(x.shape),
        _strides(x),
        _strides(maps),
        aligned,
        (height, width),
        kernel_size,
        dilation,
        stride,
        combine,
    )
    addresses = [pointer.data_ptr() for pointer in pointers]
    sums = None
    if partial:
        chunk = max(1, _CHUNK_PIXELS // (variant.groups * variant.pixels))
        tiles = -(-tiles // chunk)
        sizes = (batch, tiles, kernel_size**2, channels)
        sums = torch.empty(sizes, dtype=accumulator(x.dtype), device=x.device)
        addresses += [sums.data_ptr(), chunk]
    arguments = [
        *addresses,
        *(int(adjoint), stride, reach),
        *windows_of.shape[2:],
        *_strides(windows_of),
        *_strides(over),
        *_strides(maps),
        *(batch, channels, 1, height, width, step, wide),
    ]
    runtime.launch(_KERNELS, kernel, variant, batch * tiles, arguments, x.device)
    return sums


@torch.library.custom_op(
    "dtf_cuda::decoupled_dynamic_filter",
    mutates_args=(),
    schema=f"(Tensor x, Tensor channel_filter, Tensor spatial_filter, {_SCHEMA}) -> Tensor",
)
def decoupled_dynamic_filter(
    x: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> Tensor:
    """(B, C, H, W), ... -> (B, C, H', W'); see :func:`dtf.ops.decoupled_dynamic_filter`."""
    x = dense(x)
    out = _new(x, x.shape[1], *spatial_filter.shape[2:])
    window = (kernel_size, dilation, stride, combine)
    pointers = [x, _taps(channel_filter), spatial_filter, out]
    _launch("filter", pointers, x, out, x, spatial_filter, window)
    return out


@decoupled_dynamic_filter.register_fake
def _(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *window: int | str) -> Tensor:
    return _new(dense(x), x.shape[1], *spatial_filter.shape[2:])


@torch.library.custom_op(
    "dtf_cuda::decoupled_dynamic_filter_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor channel_filter, Tensor spatial_filter, {_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor)",
)
def decoupled_dynamic_filter_backward(
    grad: Tensor,
    x: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`decoupled_dynamic_filter` for ``x`` and both filters."""
    x = dense(x)
    grad = like(grad, _new(x, *grad.shape[1:]))
    window = (kernel_size, dilation, stride, combine)
    taps = _taps(channel_filter)
    grad_x, grad_spatial = torch.empty_like(x), _new(x, *spatial_filter.shape[1:])
    pointers = [grad, taps, spatial_filter, grad_x]
    _launch("filter", pointers, x, grad_x, grad, spatial_filter, window, adjoint=True)
    _launch("pixel_filter_gradient", [grad, x, taps, grad_spatial], x, grad, x, grad_spatial, window)
    pointers = [grad, x, spatial_filter]
    sums = _launch("channel_filter_gradient", pointers, x, grad, x, spatial_filter, window, partial=True)
    assert sums is not None
    grad_taps = sums.sum(dim=1).to(x.dtype)
    return grad_x, grad_taps.transpose(1, 2).reshape(channel_filter.shape), grad_spatial


@decoupled_dynamic_filter_backward.register_fake
def _(
    grad: Tensor, x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *window: int | str
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    grad_channel = x.new_empty(channel_filter.shape)
    return torch.empty_like(x), grad_channel, _new(x, *spatial_filter.shape[1:])


differentiate(decoupled_dynamic_filter, decoupled_dynamic_filter_backward)
