"""Deformable aggregation in CUDA C++ (kernels.cu) as a torch operator, with shapes and gradients."""

# No postponed annotations here: torch reads them.
from pathlib import Path

import torch

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.launch_samples import clip_of, frames_of, launch_samples, maps_of, variant_of

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")
_SCHEMA = "Tensor x, Tensor offset, Tensor attention, int kernel_size, int dilation, int groups"


def _maps(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    batch, _, *size = x.shape
    return x.new_empty((batch, *size, rows), dtype=dtype).permute(0, 4, 1, 2, 3)


@torch.library.custom_op("dtf_cuda::deformable_aggregation", mutates_args=(), schema=f"({_SCHEMA}) -> Tensor")
def deformable_aggregation(
    x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> Tensor:
    """(B, C, T, H, W), ... -> (B, G*C, T, H, W); see :func:`dtf.ops.deformable_aggregation`."""
    frames = frames_of(x)
    out = frames.new_empty(*frames.shape[:4], groups * x.shape[1])
    variant = variant_of(frames, [out], kernel_size)
    pointers: list[Tensor | None] = [frames, maps_of(offset), maps_of(attention), out]
    launch_samples(_KERNELS, "aggregate", variant, pointers, frames.shape, dilation, groups, x.device)
    return clip_of(out, x.dtype)


@deformable_aggregation.register_fake
def _(x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int) -> Tensor:
    return _maps(x, groups * x.shape[1], x.dtype)


@torch.library.custom_op(
    "dtf_cuda::deformable_aggregation_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def deformable_aggregation_backward(
    grad: Tensor, x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`deformable_aggregation` for ``x``, ``offset`` and ``attention``."""
    frames, places, maps, grads = frames_of(x), maps_of(offset), maps_of(attention), frames_of(grad)
    variant = variant_of(frames, [grads], kernel_size)
    window = (frames.shape, dilation, groups, x.device)
    grad_places, grad_maps = torch.empty_like(places), torch.empty_like(maps)
    pointers: list[Tensor | None] = [frames, places, maps, grads, grad_maps, grad_places]
    launch_samples(_KERNELS, "map_gradients", variant, pointers, *window)
    grad_frames = places.new_zeros(frames.shape)
    launch_samples(
        _KERNELS, "key_gradient", variant, [places, maps, grads, grad_frames], *window, spread=True
    )
    return clip_of(grad_frames, x.dtype), clip_of(grad_places, offset.dtype), clip_of(grad_maps, x.dtype)


@deformable_aggregation_backward.register_fake
def _(
    grad: Tensor, x: Tensor, offset: Tensor, attention: Tensor, kernel_size: int, dilation: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _maps(x, x.shape[1], x.dtype),
        _maps(x, offset.shape[1], offset.dtype),
        _maps(x, attention.shape[1], x.dtype),
    )


differentiate(deformable_aggregation, deformable_aggregation_backward)
