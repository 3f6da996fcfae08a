"""Deformable aggregation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

from torch import Tensor

from dtf.ops.common.sampling import Corners, sample
from dtf.ops.common.window import accumulation_dtype


def deformable_aggregation(
    x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*C, T, H, W); see :func:`dtf.ops.deformable_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    corners = Corners(offset, kernel_size, dilation)
    total = None
    for k, weight in enumerate(attention.to(wide.dtype).unflatten(1, (groups, 1, -1)).unbind(3)):
        term = weight * sample(wide, corners, k).unsqueeze(1)
        total = term if total is None else total + term
    assert total is not None
    return total.flatten(1, 2).to(x.dtype)
