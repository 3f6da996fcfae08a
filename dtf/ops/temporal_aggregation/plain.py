"""Temporal aggregation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

from torch import Tensor

from dtf.ops.common.window import accumulation_dtype, shifted


def temporal_aggregation(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    return aggregate(shifted(wide, kernel_size, dilation), attention.to(wide.dtype)).to(x.dtype)


def aggregate(views: list[Tensor], attention: Tensor) -> Tensor:
    """K*K shifted views (B, C, T, H, W) and their weights (B, K*K, T, H, W) -> (B, C, T, H, W)."""
    maps = attention.split(1, dim=1)
    total = maps[0] * views[0]
    for attended, view in zip(maps[1:], views[1:], strict=True):
        total = total + attended * view
    return total
