"""Deformable correlation written for reading: every sample stacked, multiplied and summed."""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.sampling import Corners, sample


def deformable_correlation(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*K*K, T, H, W); see :func:`dtf.ops.deformable_correlation`."""
    former = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
    corners = Corners(offset, kernel_size, dilation)
    maps = []
    for k in range(kernel_size**2):
        products = former * sample(x, corners, k)
        if weight is None:
            products = products / x.shape[1]
        else:
            products = products * weight.flatten(2)[:, :, k, None, None]
        maps.append(products.unflatten(1, (groups, -1)).sum(dim=2))
    return torch.stack(maps, dim=2).flatten(1, 2)
