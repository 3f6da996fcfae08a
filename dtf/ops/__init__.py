"""Operators of dynamic temporal filters: temporal correlation, temporal and frame-wise aggregation.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252), section 3.
Importing needs torch alone. `python -m dtf.ops` prints which backends are live.
"""

from dtf.ops.frame_wise_aggregation import frame_wise_aggregation
from dtf.ops.temporal_aggregation import temporal_aggregation
from dtf.ops.temporal_correlation import temporal_correlation

__all__ = ["frame_wise_aggregation", "temporal_aggregation", "temporal_correlation"]
