"""Temporal aggregation in CUDA C++ (kernels.cu) as a torch operator, with its shape function and gradient."""

# No postponed annotations here: torch reads them.
from pathlib import Path

import torch

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.launch import dense, launch_window, like, new_maps

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")


@torch.library.custom_op(
    "dtf_cuda::temporal_aggregation",
    mutates_args=(),
    schema="(Tensor x, Tensor attention, int kernel_size, int dilation) -> Tensor",
)
def temporal_aggregation(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    x = dense(x)
    out = torch.empty_like(x)
    launch_window(
        _KERNELS, "aggregate", [x, out], [attention], [x, attention, out], [0], kernel_size, dilation
    )
    return out


@temporal_aggregation.register_fake
def _(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return torch.empty_like(dense(x))


@torch.library.custom_op(
    "dtf_cuda::temporal_aggregation_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor attention, int kernel_size, int dilation) -> (Tensor, Tensor)",
)
def temporal_aggregation_backward(
    grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`temporal_aggregation` for ``x`` and ``attention``."""
    x = dense(x)
    grad = like(grad, x)
    out, maps = torch.empty_like(x), new_maps(x, kernel_size**2, x.dtype)
    launch_window(
        _KERNELS, "aggregate", [grad, out], [attention], [grad, attention, out], [1], kernel_size, dilation
    )
    launch_window(
        _KERNELS,
        "aggregate_backward_attention",
        [grad, x],
        [maps],
        [grad, x, maps],
        [],
        kernel_size,
        dilation,
    )
    return out, maps


@temporal_aggregation_backward.register_fake
def _(grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), new_maps(x, kernel_size**2, x.dtype)


differentiate(temporal_aggregation, temporal_aggregation_backward)
