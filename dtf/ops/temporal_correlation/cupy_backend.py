"""Temporal correlation in CUDA C++ (kernels.cu) as a torch operator, with its shape function and gradient."""

# No postponed annotations here: torch reads them.
from pathlib import Path

import torch

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.launch import dense, launch_window, new_maps

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")


@torch.library.custom_op(
    "dtf_cuda::temporal_correlation",
    mutates_args=(),
    schema="(Tensor x, int kernel_size, int dilation) -> Tensor",
)
def temporal_correlation(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    x = dense(x)
    out = new_maps(x, kernel_size**2, x.dtype)
    launch_window(_KERNELS, "correlate", [x], [out], [x, out], [], kernel_size, dilation)
    return out


@temporal_correlation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return new_maps(dense(x), kernel_size**2, x.dtype)


@torch.library.custom_op(
    "dtf_cuda::temporal_correlation_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, int kernel_size, int dilation) -> Tensor",
)
def temporal_correlation_backward(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Gradient of :func:`temporal_correlation` for ``x``."""
    x = dense(x)
    out = torch.empty_like(x)
    launch_window(
        _KERNELS,
        "correlate_backward",
        [x, out],
        [grad],
        [x, grad, out],
        [],
        kernel_size,
        dilation,
        backward=True,
    )
    return out


@temporal_correlation_backward.register_fake
def _(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return torch.empty_like(dense(x))


differentiate(temporal_correlation, temporal_correlation_backward)
