"""Frame-wise aggregation: every frame enriched by the part of the next frame that looks like it."""

from __future__ import annotations

import torch

from dtf.ops.checks import check_clip, check_window
from dtf.ops.dispatch import Backend, BackendName, Cost, cupy_kernels, register
from dtf.ops.frame_wise_aggregation import cupy_backend, plain, reference, torch_backend


def _cost(x: torch.Tensor, kernel_size: int, dilation: int) -> Cost:
    """Correlation of all frames and aggregation of all but the first, which is aggregated into none."""
    window, elements, frames = kernel_size**2, x.numel(), x.shape[2]
    moved = 2 * elements + window * elements // x.shape[1]
    return Cost(2 * window * (elements // frames) * (2 * frames - 1), moved * x.element_size())


_OPERATOR = register(
    "frame_wise_aggregation",
    cupy_kernels(cupy_backend.frame_wise_aggregation, "dtf_cuda::frame_wise_aggregation"),
    Backend("torch", torch_backend.frame_wise_aggregation, custom_op="dtf::frame_wise_aggregation"),
    Backend("reference", reference.frame_wise_aggregation, double_backward=True),
    plain=plain.frame_wise_aggregation,
    cost=_cost,
)


def frame_wise_aggregation(
    x: torch.Tensor, kernel_size: int = 3, dilation: int = 1, *, backend: BackendName = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds to every frame the next frame, gathered where it correlates with this one.

    With ``corr = temporal_correlation(x)`` and ``agg = temporal_aggregation(x, softmax_k(corr))``:
    ``enriched[t] = x[t] + agg[t + 1]`` for t < T - 1 and ``enriched[T - 1] = x[T - 1]``.

    Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252), frame-wise
    aggregation.
    Difference: the released code shifts frames by an overlapping in-place copy, whose order is undefined.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32,
    the softmax included, and each output is rounded once. Autocast changes nothing.

    Args:
        x: Clip (B, C, T, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring window pixels, at least 1.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        enriched: (B, C, T, H, W), dtype of ``x``.
        correlation: (B, K*K, T, H, W), dtype of ``x``, before the softmax.

    Raises:
        ValueError: Wrong rank, dtype, window, or a named backend that cannot run.
    """
    check_clip("frame_wise_aggregation", x)
    check_window("frame_wise_aggregation", kernel_size, dilation)
    return _OPERATOR.select(backend, x)(x, kernel_size, dilation)
