"""Deformable correlation as dot products with the corners of every sample, with its gradients written out.

Only the inputs are kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.sampling import Samples, by_pixel, to_maps
from dtf.ops.common.window import accumulation_dtype, empty_clip, to_clip, to_frames


def _former(frames: Tensor) -> Tensor:
    return torch.cat((frames[:, :1], frames[:, :-1]), dim=1)


def _parts(
    num_channels: int, num_taps: int, groups: int, weighted: bool
) -> Iterator[tuple[slice, slice, slice]]:
    """(channels, taps, maps) to be computed together: with a weight the query differs from tap to tap."""
    width, together = num_channels // groups, 1 if weighted else num_taps
    for group in range(groups):
        for tap in range(0, num_taps, together):
            first = group * num_taps + tap
            channels = slice(group * width, (group + 1) * width)
            yield channels, slice(tap, tap + together), slice(first, first + together)


def _scaled(rows: Tensor, weight: Tensor | None, tap: int, sizes: tuple[int, ...]) -> Tensor:
    """Rows (N, C) times the weight (C, T, K*K) of a tap, or 1 / C."""
    if weight is None:
        return rows / sizes[-1]
    by_frame = weight[:, :, tap].t()[:, None, None].to(rows.dtype)  # (T, 1, 1, C)
    return (rows.view(sizes) * by_frame).view(rows.shape)


@torch.library.custom_op("dtf::deformable_correlation", mutates_args=())
def deformable_correlation(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*K*K, T, H, W); see :func:`dtf.ops.deformable_correlation`."""
    if not x.numel():
        return x.new_empty(0, groups * kernel_size**2, *x.shape[2:])
    frames = to_frames(x)
    rows, query = frames.flatten(0, 3), _former(frames).flatten(0, 3)
    samples, weights = Samples(offset, kernel_size, dilation), None if weight is None else weight.flatten(2)
    maps = rows.new_empty(len(rows), groups * kernel_size**2)
    for channels, taps, here in _parts(x.shape[1], kernel_size**2, groups, weight is not None):
        scaled = _scaled(query, weights, taps.start, tuple(frames.shape))
        dots = samples.dots(scaled[:, channels], rows[:, channels], taps)
        torch.sum(dots * samples.weight[:, taps], dim=2, out=maps[:, here])
    return to_maps(maps, x, x.dtype)


@deformable_correlation.register_fake
def _(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], groups * kernel_size**2, *x.shape[2:])


@torch.library.custom_op("dtf::deformable_correlation_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for ``x``, ``offset`` and the weight; without a weight, its gradient has no entries."""
    grad_weight = x.new_zeros((0,) if weight is None else weight.shape, dtype=accumulation_dtype(x))
    if not x.numel():
        return empty_clip(x), offset.new_empty(offset.shape), grad_weight.to(x.dtype)
    frames = to_frames(x)
    rows, query, maps = frames.flatten(0, 3), _former(frames).flatten(0, 3), by_pixel(grad)
    samples, weights = Samples(offset, kernel_size, dilation), None if weight is None else weight.flatten(2)
    sizes, num_taps = tuple(frames.shape), kernel_size**2
    grad_rows, grad_query = torch.zeros_like(rows), torch.zeros_like(rows)
    grad_offset = rows.new_zeros(len(rows), num_taps, 2)
    for channels, taps, here in _parts(x.shape[1], num_taps, groups, weight is not None):
        scaled, part = _scaled(query, weights, taps.start, sizes)[:, channels].contiguous(), maps[:, here]
        keys = rows[:, channels].contiguous()
        dots = samples.dots(scaled, keys, taps).unsqueeze(2)
        grad_offset[:, taps] += (dots * samples.along[:, taps]).sum(dim=3) * part.unsqueeze(2)
        grad_rows[:, channels] += samples.spread(scaled, part, taps)
        keyed = samples.sum(keys, part, taps)
        if weight is None:
            grad_query[:, channels] += keyed / x.shape[1]
        else:
            by_frame = weight.flatten(2)[channels, :, taps.start].t()[:, None, None].to(rows.dtype)
            grad_query[:, channels] += (keyed.view(*sizes[:4], -1) * by_frame).view(keyed.shape)
            products = (keyed * query[:, channels]).view(*sizes[:4], -1).sum(dim=(0, 2, 3))  # (T, C)
            grad_weight.flatten(2)[channels, :, taps.start] = products.t()
    grad_frames, grad_former = grad_rows.view(sizes), grad_query.view(sizes)
    grad_frames[:, :1] += grad_former[:, :1]
    grad_frames[:, :-1] += grad_former[:, 1:]
    return (
        to_clip(grad_frames, x.dtype),
        to_maps(grad_offset.flatten(1), x, offset.dtype),
        grad_weight.to(x.dtype),
    )


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_clip(x),
        offset.new_empty(offset.shape),
        x.new_empty((0,) if weight is None else weight.shape),
    )


differentiate(deformable_correlation, _backward)
