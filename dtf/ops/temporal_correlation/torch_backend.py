"""Temporal correlation in cache-sized pieces, with its gradient written out.

Autograd would keep K*K shifted copies of the clip; here only the clip itself is kept.
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


def correlate(frames: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, T, H, W, C) -> (B, K*K, T, H, W), in the dtype of ``frames``."""
    batch, num_frames, height, width, channels = frames.shape
    maps = frames.new_zeros(batch, kernel_size * kernel_size, num_frames, height, width)
    window_dots(frames[:, :1], frames[:, :1], maps[:, :, :1], kernel_size, dilation)
    window_dots(frames[:, :-1], frames[:, 1:], maps[:, :, 1:], kernel_size, dilation)
    return maps.div_(channels)


def correlate_backward(
    grad_maps: Tensor, frames: Tensor, grad_frames: Tensor, kernel_size: int, dilation: int
) -> None:
    """Adds the gradient of :func:`correlate` to ``grad_frames``.

    Args:
        grad_maps: (B, K*K, T, H, W), the gradient of the maps divided by C.
        frames: (B, T, H, W, C), the input.
        grad_frames: (B, T, H, W, C), added to.
        kernel_size: Window side.
        dilation: Distance of neighbouring window pixels.
    """
    window = (kernel_size, dilation)
    former, current, self_maps, maps = frames[:, :-1], frames[:, 1:], grad_maps[:, :, :1], grad_maps[:, :, 1:]
    window_sum(maps, current, grad_frames[:, :-1], *window)
    window_spread(maps, former, grad_frames[:, 1:], *window)
    # Frame 0 is both query and key.
    window_sum(self_maps, frames[:, :1], grad_frames[:, :1], *window)
    window_spread(self_maps, frames[:, :1], grad_frames[:, :1], *window)


@torch.library.custom_op("dtf::temporal_correlation", mutates_args=())
def temporal_correlation(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    return correlate(to_frames(x), kernel_size, dilation).to(x.dtype)


@temporal_correlation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return x.new_empty(x.shape[0], kernel_size * kernel_size, *x.shape[2:])


@torch.library.custom_op("dtf::temporal_correlation_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    frames = to_frames(x)
    grad_frames = torch.zeros_like(frames)
    grad_maps = grad.to(accumulation_dtype(x)) / x.shape[1]
    correlate_backward(grad_maps, frames, grad_frames, kernel_size, dilation)
    return to_clip(grad_frames, x.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return empty_clip(x)


differentiate(temporal_correlation, _backward)
