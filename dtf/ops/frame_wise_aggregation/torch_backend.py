"""The `torch` backend."""

from dtf.ops.frame_wise_aggregation.reference import frame_wise_aggregation as frame_wise_aggregation
