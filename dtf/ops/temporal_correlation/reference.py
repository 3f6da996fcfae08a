"""Temporal correlation written for reading: every neighbour stacked, multiplied and summed."""

from __future__ import annotations

import torch

from dtf.ops.common.window import neighbours


def temporal_correlation(x: torch.Tensor, kernel_size: int, dilation: int) -> torch.Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    former = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
    keys = neighbours(x, kernel_size, dilation)  # (K*K, B, C, T, H, W)
    return (former * keys).mean(dim=2).transpose(0, 1)
