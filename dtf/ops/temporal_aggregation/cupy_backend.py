"""The `cupy` backend: CUDA C++ kernels, see dtf/ops/cuda."""

from dtf.ops.cuda.library import temporal_aggregation as temporal_aggregation
