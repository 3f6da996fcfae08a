"""Temporal correlation: how much each pixel of the former frame looks like the current frame around it."""

from __future__ import annotations

import torch

from dtf.ops.checks import check_clip, check_window
from dtf.ops.dispatch import Backend, BackendName, Cost, cupy_kernels, register
from dtf.ops.temporal_correlation import cupy_backend, plain, reference, torch_backend


def _cost(x: torch.Tensor, kernel_size: int, dilation: int) -> Cost:
    """One product for every channel, frame, pixel and offset; the clip is read, K*K maps are written."""
    window, elements = kernel_size**2, x.numel()
    return Cost(2 * window * elements, (elements + window * elements // x.shape[1]) * x.element_size())


_OPERATOR = register(
    "temporal_correlation",
    cupy_kernels(cupy_backend.temporal_correlation, "dtf_cuda::temporal_correlation"),
    Backend("torch", torch_backend.temporal_correlation, custom_op="dtf::temporal_correlation"),
    Backend("reference", reference.temporal_correlation, double_backward=True),
    plain=plain.temporal_correlation,
    cost=_cost,
)


def temporal_correlation(
    x: torch.Tensor, kernel_size: int = 3, dilation: int = 1, *, backend: BackendName = "auto"
) -> torch.Tensor:
    """Correlates every pixel of the former frame with the window around it in the current frame.

    ``out[b, k, t, h, w] = mean_c x[b, c, max(t - 1, 0), h, w] * x[b, c, t, h + dh(k), w + dw(k)]`` with the
    K*K window offsets in row-major order and zeros outside the frame. Frame 0 is correlated with itself.

    Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252), frame-wise
    aggregation.
    Difference: the released operator multiplies by a weight that is always 1/C; here it is a mean.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32
    and are rounded once. Autocast changes nothing: the operator runs in the dtype of ``x``.

    Args:
        x: Clip (B, C, T, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring window pixels, at least 1.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        Correlation (B, K*K, T, H, W), dtype of ``x``.

    Raises:
        ValueError: Wrong rank, dtype, window, or a named backend that cannot run.
    """
    check_clip("temporal_correlation", x)
    check_window("temporal_correlation", kernel_size, dilation)
    return _OPERATOR.select(backend, x)(x, kernel_size, dilation)
