"""Deformable correlation in CUDA C++ (kernels.cu) as a torch operator, with shapes and gradients."""

# No postponed annotations here: torch reads them.
from pathlib import Path

import torch

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.launch_samples import clip_of, frames_of, launch_samples, maps_of, variant_of

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")
_SCHEMA = "int kernel_size, int dilation, int groups, Tensor? weight=None"


def _by_tap(weight: Tensor | None) -> Tensor | None:
    """(C, T, K, K) -> (T, K*K, C) contiguous."""
    return None if weight is None else weight.flatten(2).permute(1, 2, 0).contiguous()


def _maps(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    batch, _, *size = x.shape
    return x.new_empty((batch, *size, rows), dtype=dtype).permute(0, 4, 1, 2, 3)


@torch.library.custom_op(
    "dtf_cuda::deformable_correlation",
    mutates_args=(),
    schema=f"(Tensor x, Tensor offset, {_SCHEMA}) -> Tensor",
)
def deformable_correlation(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*K*K, T, H, W); see :func:`dtf.ops.deformable_correlation`."""
    frames, places, by_tap = frames_of(x), maps_of(offset), _by_tap(weight)
    maps = places.new_empty(*frames.shape[:4], groups * kernel_size**2)
    variant = variant_of(frames, [] if by_tap is None else [by_tap], kernel_size, groups)
    pointers = [frames, places, by_tap, maps]
    launch_samples(_KERNELS, "correlate", variant, pointers, frames.shape, dilation, groups, x.device)
    return clip_of(maps, x.dtype)


@deformable_correlation.register_fake
def _(
    x: Tensor, offset: Tensor, kernel_size: int, dilation: int, groups: int, weight: Tensor | None = None
) -> Tensor:
    return _maps(x, groups * kernel_size**2, x.dtype)


@torch.library.custom_op(
    "dtf_cuda::deformable_correlation_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor offset, {_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def deformable_correlation_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for ``x``, ``offset`` and the weight; without a weight, its gradient has no entries."""
    frames, places, grads, by_tap = frames_of(x), maps_of(offset), maps_of(grad), _by_tap(weight)
    variant = variant_of(frames, [] if by_tap is None else [by_tap], kernel_size, groups)
    window = (frames.shape, dilation, groups, x.device)
    inputs = [frames, places, by_tap, grads]
    grad_places, grad_frames = torch.empty_like(places), places.new_empty(frames.shape)
    launch_samples(_KERNELS, "offset_gradient", variant, [*inputs, grad_places], *window)
    launch_samples(_KERNELS, "query_gradient", variant, [*inputs, grad_frames], *window)
    launch_samples(_KERNELS, "key_gradient", variant, [*inputs, grad_frames], *window, spread=True)
    grad_weight = x.new_empty(0)
    if by_tap is not None and weight is not None:
        sums = places.new_zeros(by_tap.shape)
        works = by_tap.numel() // variant.vector if x.numel() else 0
        pointers: list[Tensor | None] = [frames, places, grads, sums]
        launch_samples(_KERNELS, "weight_gradient", variant, pointers, *window, works=works)
        grad_weight = sums.permute(2, 0, 1).to(x.dtype).reshape(weight.shape).contiguous()
    return clip_of(grad_frames, x.dtype), clip_of(grad_places, offset.dtype), grad_weight


@deformable_correlation_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    groups: int,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = x.new_empty((0,) if weight is None else weight.shape)
    return _maps(x, x.shape[1], x.dtype), _maps(x, offset.shape[1], offset.dtype), grad_weight


differentiate(deformable_correlation, deformable_correlation_backward)
