"""The `torch` backend."""

from dtf.ops.temporal_correlation.reference import temporal_correlation as temporal_correlation
