"""Temporal correlation in CUDA C++ (kernels.cu) as a torch operator, with its shape function and gradient."""

# No postponed annotations here: torch reads them.
from pathlib import Path
from typing import Any

import torch

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


def _save_correlation(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x)


def _correlation_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return temporal_correlation_backward(grad, x, ctx.kernel_size, ctx.dilation), None, None


temporal_correlation.register_autograd(_correlation_gradient, setup_context=_save_correlation)
