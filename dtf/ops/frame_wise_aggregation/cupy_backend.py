"""The `cupy` backend: CUDA C++ kernels, see dtf/ops/cuda."""

from dtf.ops.cuda.library import frame_wise_aggregation as frame_wise_aggregation
