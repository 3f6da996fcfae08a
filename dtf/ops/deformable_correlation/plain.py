"""Deformable correlation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.sampling import grid_samples
from dtf.ops.common.window import accumulation_dtype


def deformable_correlation(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*K*K, T, H, W); see :func:`dtf.ops.deformable_correlation`."""
    batch, channels, num_frames = x.shape[:3]
    wide = x.to(accumulation_dtype(x))
    former = torch.cat((wide[:, :, :1], wide[:, :, :-1]), dim=2).transpose(1, 2)  # (B, T, C, H, W)
    query = former.flatten(0, 1) / channels if weight is None else former
    maps = []
    for tap, sampled in enumerate(grid_samples(wide, offset, kernel_size, dilation)):
        if weight is not None:
            by_frame = weight.flatten(2)[:, :, tap].t()[:, :, None, None].to(wide.dtype)  # (T, C, 1, 1)
            query = (former * by_frame).flatten(0, 1)
        maps.append((query * sampled).unflatten(1, (groups, -1)).sum(dim=2))
    stacked = torch.stack(maps, dim=2).flatten(1, 2)  # (B*T, G*K*K, H, W)
    return stacked.unflatten(0, (batch, num_frames)).transpose(1, 2).to(x.dtype)
