"""Operators of dynamic filters; each function names its source.

* ``temporal_correlation``, ``temporal_aggregation``, ``frame_wise_aggregation``: of clips (DTF);
* ``deformable_correlation``, ``deformable_aggregation``: of clips, at deformed places (SIFA);
* ``decoupled_dynamic_filter``: of images, or of frames that are folded into the batch (DDF).

Importing needs torch alone. `python -m dtf.ops` prints which backends are live.
"""

from dtf.ops.decoupled_dynamic_filter import decoupled_dynamic_filter
from dtf.ops.deformable_aggregation import deformable_aggregation
from dtf.ops.deformable_correlation import deformable_correlation
from dtf.ops.frame_wise_aggregation import frame_wise_aggregation
from dtf.ops.temporal_aggregation import temporal_aggregation
from dtf.ops.temporal_correlation import temporal_correlation

__all__ = [
    "decoupled_dynamic_filter",
    "deformable_aggregation",
    "deformable_correlation",
    "frame_wise_aggregation",
    "temporal_aggregation",
    "temporal_correlation",
]
