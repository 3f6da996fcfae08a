"""Deformable aggregation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

from torch import Tensor

from dtf.ops.common.sampling import grid_samples
from dtf.ops.common.window import accumulation_dtype


def deformable_aggregation(
    x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*C, T, H, W); see :func:`dtf.ops.deformable_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    # (B*T, G, 1, H, W) of each tap.
    weights = attention.to(wide.dtype).transpose(1, 2).flatten(0, 1).unflatten(1, (groups, 1, -1)).unbind(3)
    total = None
    for weight, sampled in zip(weights, grid_samples(wide, offset, kernel_size, dilation), strict=True):
        term = weight * sampled.unsqueeze(1)
        total = term if total is None else total + term
    assert total is not None
    return total.flatten(1, 2).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2).to(x.dtype)
