"""Deformable aggregation: deformed places around each pixel summed with weights of that pixel."""

from __future__ import annotations

import torch

from dtf.ops.checks import check_clip, check_positive, check_window
from dtf.ops.common.sampling import check_offset
from dtf.ops.deformable_aggregation import cupy_backend, plain, reference, torch_backend
from dtf.ops.dispatch import Backend, BackendName, Cost, cupy_kernels, register

_NAME = "deformable_aggregation"


def _cost(
    x: torch.Tensor,
    offset: torch.Tensor,
    attention: torch.Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
) -> Cost:
    """Four multiply-adds for every channel, pixel and sample, and one for each group."""
    elements = (1 + groups) * x.numel() + attention.numel()
    num_bytes = elements * x.element_size() + offset.numel() * offset.element_size()
    return Cost((8 + 2 * groups) * kernel_size**2 * x.numel(), num_bytes)


_OPERATOR = register(
    _NAME,
    cupy_kernels(cupy_backend.deformable_aggregation, "dtf_cuda::deformable_aggregation"),
    Backend("torch", torch_backend.deformable_aggregation, custom_op="dtf::deformable_aggregation"),
    Backend("reference", reference.deformable_aggregation, double_backward=True),
    plain=plain.deformable_aggregation,
    cost=_cost,
)


def deformable_aggregation(
    x: torch.Tensor,
    offset: torch.Tensor,
    attention: torch.Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    groups: int = 1,
    *,
    backend: BackendName = "auto",
) -> torch.Tensor:
    """Sums K*K deformed places around every pixel with attention maps that all channels share.

    ``out[b, g * C + c, t, h, w] = sum_k attention[b, g * K*K + k, t, h, w] * S(x[b, c, t], y, z)`` with the
    places and the sampling of :func:`dtf.ops.deformable_correlation`. Every group aggregates all channels.
    ``attention`` is used as it is (no softmax).

    With offsets of zero and one group it equals :func:`dtf.ops.temporal_aggregation`, which costs less.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
    Differences from the released code: any memory layout (it reads other numbers), 16 bits, no stride.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32
    and are rounded once. Places are taken in float32 (float64 for float64) always. Autocast changes nothing.

    Args:
        x: Clip (B, C, T, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        offset: In pixels, (B, 2*K*K, T, H, W): y and x of each tap; dtype of ``x``, or float32 for a 16-bit
            ``x``.
        attention: Weights (B, G*K*K, T, H, W), device and dtype of ``x``, any memory layout.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring taps, at least 1.
        groups: Number G of attention maps per tap.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        Aggregated clips (B, G*C, T, H, W), dtype of ``x``.

    Raises:
        ValueError: Wrong rank, shape, dtype, device, window or groups, or a named backend that cannot run.
    """
    check_clip(_NAME, x)
    check_window(_NAME, kernel_size, dilation)
    check_positive(_NAME, groups=groups)
    check_offset(_NAME, x, offset, kernel_size)
    expected = (x.shape[0], groups * kernel_size**2, *x.shape[2:])
    if tuple(attention.shape) != expected:
        raise ValueError(
            f"{_NAME}: attention must be (B, G*K*K, T, H, W) = {expected} for x {tuple(x.shape)}, "
            f"kernel_size {kernel_size} and groups {groups}, got {tuple(attention.shape)}"
        )
    if attention.dtype != x.dtype or attention.device != x.device:
        raise ValueError(
            f"{_NAME}: x and attention must share dtype and device, got {x.dtype} on {x.device} "
            f"and {attention.dtype} on {attention.device}; convert one, e.g. attention.to(x)"
        )
    run = _OPERATOR.select(backend, x, offset, attention)
    return run(x, offset, attention, kernel_size, dilation, groups)
