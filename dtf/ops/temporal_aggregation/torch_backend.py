"""Temporal aggregation in cache-sized pieces, with its gradient written out.

Autograd would keep K*K shifted copies of the clip; here only the inputs are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.window import (
    accumulation_dtype,
    empty_clip,
    to_clip,
    to_frames,
    window_dots,
    window_spread,
    window_sum,
)


@torch.library.custom_op("dtf::temporal_aggregation", mutates_args=())
def temporal_aggregation(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    frames = to_frames(x)
    out = torch.zeros_like(frames)
    window_sum(attention.to(frames.dtype), frames, out, kernel_size, dilation)
    return to_clip(out, x.dtype)


@temporal_aggregation.register_fake
def _(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return empty_clip(x)


@torch.library.custom_op("dtf::temporal_aggregation_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    frames, grad_frames = to_frames(x), to_frames(grad)
    grad_x = torch.zeros_like(frames)
    window_spread(attention.to(frames.dtype), grad_frames, grad_x, kernel_size, dilation)
    grad_attention = torch.zeros(attention.shape, dtype=accumulation_dtype(x), device=x.device)
    window_dots(grad_frames, frames, grad_attention, kernel_size, dilation)
    return to_clip(grad_x, x.dtype), grad_attention.to(x.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    return empty_clip(x), attention.new_empty(attention.shape)


differentiate(temporal_aggregation, _backward)
