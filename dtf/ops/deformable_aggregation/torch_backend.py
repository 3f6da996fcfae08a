"""Deformable aggregation as sums of weighted corners of every sample, with its gradients written out.

Only the inputs are kept for the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.sampling import Samples, by_pixel, to_maps
from dtf.ops.common.window import empty_clip, to_clip, to_frames


def _parts(groups: int, channels: int, num_taps: int) -> list[tuple[slice, slice]]:
    """(channels of the result, maps) of each group."""
    return [
        (slice(g * channels, (g + 1) * channels), slice(g * num_taps, (g + 1) * num_taps))
        for g in range(groups)
    ]


@torch.library.custom_op("dtf::deformable_aggregation", mutates_args=())
def deformable_aggregation(
    x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*C, T, H, W); see :func:`dtf.ops.deformable_aggregation`."""
    frames = to_frames(x)
    out = frames.new_empty(*frames.shape[:4], groups * x.shape[1])
    if x.numel():
        rows, maps, samples = (
            frames.flatten(0, 3),
            by_pixel(attention),
            Samples(offset, kernel_size, dilation),
        )
        for channels, here in _parts(groups, x.shape[1], kernel_size**2):
            out[..., channels] = samples.sum(rows, maps[:, here]).view(frames.shape)
    return to_clip(out, x.dtype)


@deformable_aggregation.register_fake
def _(x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int) -> Tensor:
    batch, channels, *size = x.shape
    return x.new_empty(batch, *size, groups * channels).permute(0, 4, 1, 2, 3)


@torch.library.custom_op("dtf::deformable_aggregation_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not x.numel():
        return empty_clip(x), offset.new_empty(offset.shape), attention.new_empty(attention.shape)
    frames = to_frames(x)
    rows, grads, maps = frames.flatten(0, 3), to_frames(grad).flatten(0, 3), by_pixel(attention)
    samples = Samples(offset, kernel_size, dilation)
    grad_rows, grad_maps = torch.zeros_like(rows), torch.empty_like(maps)
    through = rows.new_zeros(len(rows), kernel_size**2, 4)
    for channels, here in _parts(groups, x.shape[1], kernel_size**2):
        part = grads[:, channels].contiguous()
        dots = samples.dots(part, rows)
        torch.sum(dots * samples.weight, dim=2, out=grad_maps[:, here])
        through.addcmul_(dots, maps[:, here].unsqueeze(2))
        grad_rows += samples.spread(part, maps[:, here])
    grad_offset = (through.unsqueeze(2) * samples.along).sum(dim=3).flatten(1)
    return (
        to_clip(grad_rows.view(frames.shape), x.dtype),
        to_maps(grad_offset, x, offset.dtype),
        to_maps(grad_maps, x, x.dtype),
    )


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_clip(x), offset.new_empty(offset.shape), attention.new_empty(attention.shape)


differentiate(deformable_aggregation, _backward)
