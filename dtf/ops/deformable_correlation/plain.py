"""Deformable correlation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

from torch import Tensor

from dtf.ops.common.window import accumulation_dtype
from dtf.ops.deformable_correlation import reference


def deformable_correlation(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*K*K, T, H, W); see :func:`dtf.ops.deformable_correlation`."""
    # Samples are summed tap by tap in the reference already.
    wide = accumulation_dtype(x)
    weight = None if weight is None else weight.to(wide)
    maps = reference.deformable_correlation(x.to(wide), offset, kernel_size, dilation, groups, weight)
    return maps.to(x.dtype)
