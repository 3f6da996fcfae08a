"""Frame-wise aggregation composed of the two reference operators."""

from __future__ import annotations

import torch

from dtf.ops.temporal_aggregation.reference import temporal_aggregation
from dtf.ops.temporal_correlation.reference import temporal_correlation


def frame_wise_aggregation(
    x: torch.Tensor, kernel_size: int, dilation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    correlation = temporal_correlation(x, kernel_size, dilation)
    aggregated = temporal_aggregation(x, correlation.softmax(dim=1), kernel_size, dilation)
    # A real shift of one frame: the last frame has no successor and stays as it is.
    successor = torch.cat([aggregated[:, :, 1:], torch.zeros_like(x[:, :, :1])], dim=2)
    return x + successor, correlation
