"""Deformable correlation: how much a pixel of the former frame looks like deformed places of this one."""

from __future__ import annotations

import torch

from dtf.ops.checks import check_clip, check_positive, check_window
from dtf.ops.common.sampling import check_offset
from dtf.ops.deformable_correlation import cupy_backend, plain, reference, torch_backend
from dtf.ops.dispatch import Backend, BackendName, Cost, cupy_kernels, register

_NAME = "deformable_correlation"


def _cost(
    x: torch.Tensor,
    offset: torch.Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
    weight: torch.Tensor | None = None,
) -> Cost:
    """Four multiply-adds for every channel, pixel and sample, and one with the query."""
    maps = groups * offset.numel() // 2
    elements = x.numel() + maps + (0 if weight is None else weight.numel())
    num_bytes = elements * x.element_size() + offset.numel() * offset.element_size()
    return Cost(10 * kernel_size**2 * x.numel(), num_bytes)


_OPERATOR = register(
    _NAME,
    cupy_kernels(cupy_backend.deformable_correlation, "dtf_cuda::deformable_correlation"),
    Backend("torch", torch_backend.deformable_correlation, custom_op="dtf::deformable_correlation"),
    Backend("reference", reference.deformable_correlation, double_backward=True),
    plain=plain.deformable_correlation,
    cost=_cost,
)


def deformable_correlation(
    x: torch.Tensor,
    offset: torch.Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    groups: int = 1,
    *,
    weight: torch.Tensor | None = None,
    backend: BackendName = "auto",
) -> torch.Tensor:
    """Correlates every pixel of the former frame with K*K deformed places of the current frame.

    ``out[b, g * K*K + k, t, h, w] = sum_c weight[c, t, k] * x[b, c, max(t - 1, 0), h, w] * S(x[b, c, t], y,
    z)`` over the channels c of group g, with ``y = h + dh(k) + offset[b, 2k, t, h, w]``, ``z = w + dw(k) +
    offset[b, 2k + 1, t, h, w]`` and the K*K window offsets (dh, dw) in row-major order. Frame 0 is
    correlated with itself. Nothing is normalised over the taps.

    S samples bilinearly, with zeros outside the frame; at whole coordinates its derivative is the right-sided
    one, which matters where offsets are zero. A sample at -1 or less, or at H (W) or more, has no gradient.

    With offsets of zero it equals :func:`dtf.ops.temporal_correlation`, which costs less.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
    Differences from the released code: any memory layout (it reads other numbers), 16 bits, no stride.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32
    and are rounded once. Places are taken in float32 (float64 for float64) always. Autocast changes nothing.

    Args:
        x: Clip (B, C, T, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        offset: In pixels, (B, 2*K*K, T, H, W): y and x of each tap; dtype of ``x``, or float32 for a 16-bit
            ``x``. The same for all channels.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring taps, at least 1.
        groups: Groups G of channels that follow each other; divides C.
        weight: (C, T, K, K), device and dtype of ``x``; ``None``: 1 / C everywhere.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        Correlation (B, G*K*K, T, H, W), dtype of ``x``.

    Raises:
        ValueError: Wrong rank, shape, dtype, device, window or groups, or a named backend that cannot run.
    """
    check_clip(_NAME, x)
    check_window(_NAME, kernel_size, dilation)
    check_positive(_NAME, groups=groups)
    check_offset(_NAME, x, offset, kernel_size)
    if x.shape[1] % groups:
        allowed = [n for n in range(1, x.shape[1] + 1) if x.shape[1] % n == 0]
        raise ValueError(f"{_NAME}: groups must divide C = {x.shape[1]}, got {groups}; allowed: {allowed}")
    if weight is None:
        return _OPERATOR.select(backend, x, offset)(x, offset, kernel_size, dilation, groups)
    expected = (x.shape[1], x.shape[2], kernel_size, kernel_size)
    if tuple(weight.shape) != expected or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"{_NAME}: weight must be (C, T, K, K) = {expected}, {x.dtype} on {x.device}, got "
            f"{tuple(weight.shape)}, {weight.dtype} on {weight.device}"
        )
    run = _OPERATOR.select(backend, x, offset, weight)
    return run(x, offset, kernel_size, dilation, groups, weight)
