"""The `torch` backend."""

from dtf.ops.temporal_aggregation.reference import temporal_aggregation as temporal_aggregation
