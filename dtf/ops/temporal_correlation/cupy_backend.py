"""The `cupy` backend: CUDA C++ kernels, see dtf/ops/cuda."""

from dtf.ops.cuda.library import temporal_correlation as temporal_correlation
