"""Decoupled dynamic filter: a window summed with a filter of the channel times (or plus) one of the pixel."""

from __future__ import annotations

from typing import Literal

import torch

from dtf.ops.checks import check_positive, check_window
from dtf.ops.decoupled_dynamic_filter import cupy_backend, plain, reference, torch_backend
from dtf.ops.dispatch import FLOATING, Backend, BackendName, Cost, cupy_kernels, register

Combine = Literal["mul", "add"]
_NAME = "decoupled_dynamic_filter"


def _cost(
    x: torch.Tensor,
    channel_filter: torch.Tensor,
    spatial_filter: torch.Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> Cost:
    """One multiply-add for every channel, pixel of the result and tap; each tensor is touched once."""
    outputs = x.shape[0] * x.shape[1] * spatial_filter.shape[2] * spatial_filter.shape[3]
    elements = x.numel() + channel_filter.numel() + spatial_filter.numel() + outputs
    return Cost(2 * kernel_size**2 * outputs, elements * x.element_size())


_OPERATOR = register(
    _NAME,
    cupy_kernels(cupy_backend.decoupled_dynamic_filter, "dtf_cuda::decoupled_dynamic_filter"),
    Backend("torch", torch_backend.decoupled_dynamic_filter, custom_op="dtf::decoupled_dynamic_filter"),
    Backend("reference", reference.decoupled_dynamic_filter, double_backward=True),
    plain=plain.decoupled_dynamic_filter,
    cost=_cost,
)


def decoupled_dynamic_filter(
    x: torch.Tensor,
    channel_filter: torch.Tensor,
    spatial_filter: torch.Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    combine: Combine = "mul",
    *,
    backend: BackendName = "auto",
) -> torch.Tensor:
    """Filters every channel of an image by itself, with weights from a filter per channel and one per pixel.

    ``out[n, c, p, q] = sum_ij f * x[n, c, p * stride + (i - r) * dilation, q * stride + (j - r) * dilation]``
    with ``f = channel_filter[n, c, i, j] * spatial_filter[n, i * K + j, p, q]``, or their sum with
    ``combine="add"``; r = (K - 1) / 2, x is zero outside the image, and the kernel is not flipped.

    Special cases, in one line each:

    * a filter of the position alone (as involution and CARAFE have it), shared by all channels:
      ``decoupled_dynamic_filter(x, x.new_ones(()).expand(B, C, K, K), spatial_filter, K)``;
    * a depth-wise filter of the channel alone (as WeightNet has it), shared by all positions:
      ``decoupled_dynamic_filter(x, channel_filter, x.new_ones(()).expand(B, K * K, H, W), K)``;
    * either with ``combine="add"`` and ``new_zeros`` in place of ``new_ones``: the same numbers.

    Source: Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021 (arXiv 2104.14107).
    Differences from the released code: it takes ``floor(H / stride)`` rows alone, contiguous tensors and no
    bfloat16, and returns float32 for float16.

    Precision: float64 and float32 accumulate in their own dtype; float16 and bfloat16 accumulate in float32
    and are rounded once. Autocast changes nothing: the operator runs in the dtype of its inputs.

    Args:
        x: Features (B, C, H, W), float64, float32, bfloat16 or float16, any memory layout. Only B may be 0.
        channel_filter: (B, C, K, K), device and dtype of ``x``, any memory layout.
        spatial_filter: (B, K*K, H', W'), device and dtype of ``x``, any memory layout; plane i * K + j
            belongs to row i and column j of the kernel. H' is H / stride, rounded up (as a convolution has
            it) or down; W' likewise.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring window pixels, at least 1.
        stride: Distance of neighbouring windows, at least 1.
        combine: ``mul`` or ``add``.
        backend: ``auto``, ``torch``, ``cupy`` or ``reference``.

    Returns:
        (B, C, H', W'), dtype of ``x``.

    Raises:
        ValueError: Wrong rank, shape, dtype, device, window or combination, or a named backend that cannot
            run.
    """
    check_window(_NAME, kernel_size, dilation)
    check_positive(_NAME, stride=stride)
    if combine not in ("mul", "add"):
        raise ValueError(f"{_NAME}: combine must be 'mul' or 'add', got {combine!r}")
    _check_shapes(x, channel_filter, spatial_filter, kernel_size, stride)
    tensors = (x, channel_filter, spatial_filter)
    if any(value.dtype != x.dtype or value.device != x.device for value in tensors):
        given = ", ".join(f"{value.dtype} on {value.device}" for value in tensors)
        raise ValueError(
            f"{_NAME}: x and its filters must share dtype and device, got {given}; convert, e.g. filter.to(x)"
        )
    return _OPERATOR.select(backend, *tensors)(*tensors, kernel_size, dilation, stride, combine)


def _check_shapes(
    x: torch.Tensor,
    channel_filter: torch.Tensor,
    spatial_filter: torch.Tensor,
    kernel_size: int,
    stride: int,
) -> None:
    if x.dim() != 4:
        raise ValueError(
            f"{_NAME}: x must be (B, C, H, W), got {x.dim()} dimensions {tuple(x.shape)}; "
            "fold the frames of a clip into the batch"
        )
    if min(x.shape[1:]) < 1:
        raise ValueError(f"{_NAME}: only the batch of x may be empty, got shape {tuple(x.shape)}")
    if x.dtype not in FLOATING:
        raise ValueError(f"{_NAME}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    batch, channels, height, width = x.shape
    expected = (batch, channels, kernel_size, kernel_size)
    if tuple(channel_filter.shape) != expected:
        raise ValueError(
            f"{_NAME}: channel_filter must be (B, C, K, K) = {expected} for x {tuple(x.shape)} and "
            f"kernel_size {kernel_size}, got {tuple(channel_filter.shape)}"
        )
    planes = (batch, kernel_size**2)
    # Rounded down and up; a row there is always.
    sizes = [(max(1, size // stride), -(-size // stride)) for size in (height, width)]
    fits = spatial_filter.dim() == 4 and tuple(spatial_filter.shape[:2]) == planes
    if not fits or any(n not in allowed for n, allowed in zip(spatial_filter.shape[2:], sizes, strict=True)):
        rows, columns = (" or ".join(map(str, dict.fromkeys(allowed))) for allowed in sizes)
        raise ValueError(
            f"{_NAME}: spatial_filter must be (B, K*K, H', W') = ({planes[0]}, {planes[1]}, {rows}, "
            f"{columns}) for x {tuple(x.shape)}, kernel_size {kernel_size} and stride {stride}, got "
            f"{tuple(spatial_filter.shape)}"
        )
