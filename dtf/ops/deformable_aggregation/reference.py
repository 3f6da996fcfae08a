"""Deformable aggregation written for reading: every sample weighted and summed."""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.sampling import Corners, sample


def deformable_aggregation(
    x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*C, T, H, W); see :func:`dtf.ops.deformable_aggregation`."""
    corners = Corners(offset, kernel_size, dilation)
    weights = attention.unflatten(1, (groups, 1, -1)).unbind(3)
    terms = [weight * sample(x, corners, k).unsqueeze(1) for k, weight in enumerate(weights)]
    return torch.stack(terms).sum(dim=0).flatten(1, 2)
