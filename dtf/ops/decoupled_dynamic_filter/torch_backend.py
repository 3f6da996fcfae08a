"""Decoupled dynamic filter in cache-sized pieces, with its gradients written out.

Autograd would keep K*K shifted copies of the features; here only the inputs are kept. The features are
walked as (B, H, W, C), so what is in channels_last is not copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtf.ops.common.gradients import differentiate
from dtf.ops.common.window import accumulation_dtype, overlaps, pieces


def _to_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) of any layout -> (B, H, W, C) contiguous, in the dtype that sums are taken in."""
    return x.permute(0, 2, 3, 1).to(accumulation_dtype(x)).contiguous()


def _taps(channel_filter: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, K, K) -> (B, K*K, C) contiguous."""
    return channel_filter.flatten(2).transpose(1, 2).to(dtype).contiguous()


@torch.library.custom_op("dtf::decoupled_dynamic_filter", mutates_args=())
def decoupled_dynamic_filter(
    x: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> Tensor:
    """(B, C, H, W), ... -> (B, C, H', W'); see :func:`dtf.ops.decoupled_dynamic_filter`."""
    values = _to_pixels(x)
    a, b = _taps(channel_filter, values.dtype), spatial_filter.to(values.dtype)
    batch, *_, channels = values.shape
    out = values.new_zeros(batch, *b.shape[2:], channels)
    size, window = (values.shape[1], values.shape[2]), (kernel_size, dilation, stride)
    for samples, _, top, bottom in pieces(out.unsqueeze(1)):
        v, o, by_channel, by_pixel = values[samples], out[samples], a[samples], b[samples]
        for k, (h, w), (near_h, near_w) in overlaps(top, bottom, b.shape[3], size, *window):
            a_k, b_k, near = by_channel[:, k, None, None], by_pixel[:, k, h, w, None], v[:, near_h, near_w]
            if combine == "mul":
                o[:, h, w].addcmul_(near * a_k, b_k)
            else:
                o[:, h, w].addcmul_(near, a_k + b_k)
    return out.to(x.dtype).permute(0, 3, 1, 2)


@decoupled_dynamic_filter.register_fake
def _(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *window: int | str) -> Tensor:
    batch, channels = x.shape[:2]
    return x.new_empty(batch, *spatial_filter.shape[2:], channels).permute(0, 3, 1, 2)


@torch.library.custom_op("dtf::decoupled_dynamic_filter_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    combine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    values, grads = _to_pixels(x), _to_pixels(grad)
    a, b = _taps(channel_filter, values.dtype), spatial_filter.to(values.dtype)
    grad_values, grad_a, grad_b = torch.zeros_like(values), torch.zeros_like(a), b.new_zeros(b.shape)
    size, window = (values.shape[1], values.shape[2]), (kernel_size, dilation, stride)
    for samples, _, top, bottom in pieces(grads.unsqueeze(1)):
        v, g, by_channel, by_pixel = values[samples], grads[samples], a[samples], b[samples]
        for k, (h, w), (near_h, near_w) in overlaps(top, bottom, b.shape[3], size, *window):
            a_k, b_k, here = by_channel[:, k, None, None], by_pixel[:, k, h, w, None], g[:, h, w]
            product = here * v[:, near_h, near_w]
            target = grad_values[samples][:, near_h, near_w]
            if combine == "mul":
                target.addcmul_(here * a_k, b_k)
                grad_a[samples, k] += _over_pixels(product, b_k)
                grad_b[samples, k, h, w] = _over_channels(product, a_k)
            else:
                target.addcmul_(here, a_k + b_k)
                grad_a[samples, k] += product.sum(dim=(1, 2))
                grad_b[samples, k, h, w] = product.sum(dim=3)
    side = (kernel_size, kernel_size)
    grad_filter = grad_a.transpose(1, 2).contiguous().unflatten(2, side).to(x.dtype)
    return grad_values.to(x.dtype).permute(0, 3, 1, 2), grad_filter, grad_b.to(x.dtype)


# On a CPU a product with a vector takes one pass instead of two. Elsewhere it might be taken in TF32.
def _over_pixels(product: Tensor, weight: Tensor) -> Tensor:
    """(n, h, w, C), (n, h, w, 1) -> (n, C)."""
    if product.device.type != "cpu":
        return (product * weight).sum(dim=(1, 2))
    with torch.autocast("cpu", enabled=False):
        return torch.bmm(weight.reshape(len(weight), 1, -1), product.flatten(1, 2)).squeeze(1)


def _over_channels(product: Tensor, weight: Tensor) -> Tensor:
    """(n, h, w, C), (n, 1, 1, C) -> (n, h, w)."""
    if product.device.type != "cpu":
        return (product * weight).sum(dim=3)
    with torch.autocast("cpu", enabled=False):
        flat = torch.bmm(product.flatten(1, 2), weight.reshape(len(weight), -1, 1))
    return flat.view(product.shape[:3])


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *window: int | str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    grad_x = x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    return grad_x, x.new_empty(channel_filter.shape), x.new_empty(spatial_filter.shape)


differentiate(decoupled_dynamic_filter, _backward)
