"""Frame-wise aggregation in CUDA C++ (kernels.cu) as a torch operator, with shapes and gradient."""

# No postponed annotations here: torch reads them.
from pathlib import Path
from typing import Any

import torch

from dtf.ops.common.launch import dense, launch_window, like, new_maps
from dtf.ops.common.source import accumulator

Tensor = torch.Tensor
_KERNELS = Path(__file__).with_name("kernels.cu")


@torch.library.custom_op(
    "dtf_cuda::frame_wise_aggregation",
    mutates_args=(),
    schema="(Tensor x, int kernel_size, int dilation) -> (Tensor, Tensor)",
)
def frame_wise_aggregation(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    x = dense(x)
    enriched, correlation = torch.empty_like(x), new_maps(x, kernel_size**2, x.dtype)
    pointers: list[Tensor | None] = [x, enriched, correlation]
    launch_window(_KERNELS, "enrich", [x, enriched], [correlation], pointers, [], kernel_size, dilation)
    return enriched, correlation


@frame_wise_aggregation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), new_maps(x, kernel_size**2, x.dtype)


@torch.library.custom_op(
    "dtf_cuda::frame_wise_aggregation_backward",
    mutates_args=(),
    schema="(Tensor grad_enriched, Tensor? grad_correlation, Tensor x, Tensor correlation, int kernel_size, "
    "int dilation) -> Tensor",
)
def frame_wise_aggregation_backward(
    grad_enriched: Tensor,
    grad_correlation: Tensor | None,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """Gradient of :func:`frame_wise_aggregation` for ``x``; ``correlation`` is its second output."""
    x = dense(x)
    grad = like(grad_enriched, x)
    maps = new_maps(x, 2 * kernel_size**2, accumulator(x.dtype))
    gradients = correlation if grad_correlation is None else grad_correlation  # strides of an absent tensor
    launch_window(
        _KERNELS,
        "enrich_backward_maps",
        [grad, x],
        [correlation, gradients, maps],
        [grad, x, correlation, grad_correlation, maps],
        [],
        kernel_size,
        dilation,
    )
    out = torch.empty_like(x)
    launch_window(
        _KERNELS,
        "enrich_backward",
        [grad, x, out],
        [maps],
        [grad, x, maps, out],
        [],
        kernel_size,
        dilation,
        backward=True,
    )
    return out


@frame_wise_aggregation_backward.register_fake
def _(
    grad_enriched: Tensor,
    grad_correlation: Tensor | None,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    return torch.empty_like(dense(x))


def _save_enrichment(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x, output[1])
    ctx.set_materialize_grads(False)


def _enrichment_gradient(
    ctx: Any, grad_enriched: Tensor | None, grad_correlation: Tensor | None
) -> tuple[Tensor | None, None, None]:
    x, correlation = ctx.saved_tensors
    if grad_enriched is None and grad_correlation is None:
        return None, None, None
    if grad_enriched is None:
        grad_enriched = torch.zeros_like(x)
    grad = frame_wise_aggregation_backward(
        grad_enriched, grad_correlation, x, correlation, ctx.kernel_size, ctx.dilation
    )
    return grad, None, None


frame_wise_aggregation.register_autograd(_enrichment_gradient, setup_context=_save_enrichment)
