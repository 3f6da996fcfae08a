"""Temporal aggregation: a window of each frame summed with weights that differ from pixel to pixel."""

from __future__ import annotations

import torch

from dtf.ops.checks import check_clip, check_window
from dtf.ops.dispatch import Backend, BackendName, Cost, cupy_kernels, register
from dtf.ops.temporal_aggregation import cupy_backend, plain, reference, torch_backend


def _cost(x: torch.Tensor, attention: torch.Tensor, kernel_size: int, dilation: int) -> Cost:
    """One product for every channel, frame, pixel and offset; clip and maps are read, a clip is written."""
    return Cost(2 * kernel_size**2 * x.numel(), (2 * x.numel() + attention.numel()) * x.element_size())


_OPERATOR = register(
    "temporal_aggregation",
    cupy_kernels(cupy_backend.temporal_aggregation, "dtf_cuda::temporal_aggregation"),
    Backend("torch", torch_backend.temporal_aggregation, custom_op="dtf::temporal_aggregation"),
    Backend("reference", reference.temporal_aggregation, double_backward=True),
    plain=plain.temporal_aggregation,
    cost=_cost,
)


def temporal_aggregation(
    x: torch.Tensor,
    attention: torch.Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    *,
    backend: BackendName = "auto",
) -> torch.Tensor:
    """Sums the window around every pixel with one attention map per frame and offset, shared by all channels.

    ``out[b, c, t, h, w] = sum_k attention[b, k, t, h, w] * x[b, c, t, h + dh(k), w + dw(k)]`` with the K*K
    window offsets in row-major order and zeros outside the frame. ``attention`` is used as it is (no
    softmax).

    Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252), frame-wise
    aggregation.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32
    and are rounded once. Autocast changes nothing: the operator runs in the dtype of its inputs.

    Args:
        x: Clip (B, C, T, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        attention: Weights (B, K*K, T, H, W), device and dtype of ``x``, any memory layout.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring window pixels, at least 1.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        Aggregated clip (B, C, T, H, W), dtype of ``x``.

    Raises:
        ValueError: Wrong rank, shape, dtype, device or window, or a named backend that cannot run.
    """
    check_clip("temporal_aggregation", x)
    check_window("temporal_aggregation", kernel_size, dilation)
    expected = (x.shape[0], kernel_size * kernel_size, *x.shape[2:])
    if tuple(attention.shape) != expected:
        raise ValueError(
            f"temporal_aggregation: attention must be (B, K*K, T, H, W) = {expected} for x {tuple(x.shape)} "
            f"and kernel_size {kernel_size}, got {tuple(attention.shape)}"
        )
    if attention.dtype != x.dtype or attention.device != x.device:
        raise ValueError(
            f"temporal_aggregation: x and attention must share dtype and device, got {x.dtype} on {x.device} "
            f"and {attention.dtype} on {attention.device}; convert one, e.g. attention.to(x)"
        )
    return _OPERATOR.select(backend, x, attention)(x, attention, kernel_size, dilation)
