"""Temporal correlation in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.window import accumulation_dtype, shifted


def temporal_correlation(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    wide = x.to(accumulation_dtype(x))
    return correlate(wide, shifted(wide, kernel_size, dilation)).to(x.dtype)


def correlate(x: Tensor, views: list[Tensor]) -> Tensor:
    """(B, C, T, H, W) and its K*K shifted views -> (B, K*K, T, H, W)."""
    former = torch.cat((x[:, :, :1], x[:, :, :-1]), dim=2)
    return torch.cat([(former * view).mean(dim=1, keepdim=True) for view in views], dim=1)
