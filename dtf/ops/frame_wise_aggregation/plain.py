"""Frame-wise aggregation in torch's own operations, for exported graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.window import accumulation_dtype, shifted
from dtf.ops.temporal_aggregation.plain import aggregate
from dtf.ops.temporal_correlation.plain import correlate


def frame_wise_aggregation(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    views = shifted(wide, kernel_size, dilation)
    correlation = correlate(wide, views)
    # Frame 0 is aggregated in vain; K*K views of the later frames would be copies in most runtimes.
    added = aggregate(views, correlation.softmax(dim=1))[:, :, 1:]
    enriched = torch.cat((wide[:, :, :-1] + added, wide[:, :, -1:]), dim=2)
    return enriched.to(x.dtype), correlation.to(x.dtype)
