"""Temporal aggregation written for reading: every neighbour stacked, weighted and summed."""

from __future__ import annotations

import torch

from dtf.ops.common.window import neighbours


def temporal_aggregation(
    x: torch.Tensor, attention: torch.Tensor, kernel_size: int, dilation: int
) -> torch.Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    values = neighbours(x, kernel_size, dilation)  # (K*K, B, C, T, H, W)
    return (attention.transpose(0, 1).unsqueeze(2) * values).sum(dim=0)
