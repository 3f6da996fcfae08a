"""Frame-wise aggregation in cache-sized pieces, with its gradient written out.

Only the clip and the correlation maps are kept for the gradient; the softmax is taken again. The aggregation
is added to the former frame as it is summed, so no aggregated clip exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dtf.ops.common.window import empty_clip, to_clip, to_frames, window_dots, window_spread, window_sum
from dtf.ops.temporal_correlation.torch_backend import correlate, correlate_backward


@torch.library.custom_op("dtf::frame_wise_aggregation", mutates_args=())
def frame_wise_aggregation(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    frames = to_frames(x)
    correlation = correlate(frames, kernel_size, dilation)
    attention = correlation[:, :, 1:].softmax(dim=1)
    enriched = frames.clone()
    window_sum(attention, frames[:, 1:], enriched[:, :-1], kernel_size, dilation)
    return to_clip(enriched, x.dtype), correlation.to(x.dtype)


@frame_wise_aggregation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    return empty_clip(x), x.new_empty(x.shape[0], kernel_size * kernel_size, *x.shape[2:])


@torch.library.custom_op("dtf::frame_wise_aggregation_backward", mutates_args=())
def _backward(
    grad_enriched: Tensor,
    grad_correlation: Tensor,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    window = (kernel_size, dilation)
    frames, grad = to_frames(x), to_frames(grad_enriched)
    attention = correlation[:, :, 1:].to(frames.dtype).softmax(dim=1)
    grad_frames = grad.clone()
    # Frame t was aggregated into frame t - 1.
    window_spread(attention, grad[:, :-1], grad_frames[:, 1:], *window)
    grad_attention = torch.zeros_like(attention)
    window_dots(grad[:, :-1], frames[:, 1:], grad_attention, *window)
    grad_maps = grad_correlation.to(frames.dtype, copy=True)
    grad_maps[:, :, 1:] += attention * (
        grad_attention - (attention * grad_attention).sum(dim=1, keepdim=True)
    )
    correlate_backward(grad_maps.div_(x.shape[1]), frames, grad_frames, *window)
    return to_clip(grad_frames, x.dtype)


@_backward.register_fake
def _(
    grad_enriched: Tensor,
    grad_correlation: Tensor,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    return empty_clip(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x, output[1])


def _differentiate(ctx: Any, grad_enriched: Tensor, grad_correlation: Tensor) -> tuple[Tensor, None, None]:
    x, correlation = ctx.saved_tensors
    grad = _backward(grad_enriched, grad_correlation, x, correlation, ctx.kernel_size, ctx.dilation)
    return grad, None, None


frame_wise_aggregation.register_autograd(_differentiate, setup_context=_setup_context)
