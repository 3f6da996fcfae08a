"""Decoupled dynamic filter in torch's own operations, for exported graphs: nothing is stacked K*K times."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dtf.ops.common.window import accumulation_dtype


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
    dtype = accumulation_dtype(x)
    pad = (kernel_size - 1) // 2 * dilation
    padded = F.pad(x.to(dtype), (pad, pad, pad, pad))
    a, b = channel_filter.to(dtype), spatial_filter.to(dtype)
    height, width = spatial_filter.shape[2:]
    total = None
    for i in range(kernel_size):
        for j in range(kernel_size):
            top, left = i * dilation, j * dilation
            rows = slice(top, top + (height - 1) * stride + 1, stride)
            columns = slice(left, left + (width - 1) * stride + 1, stride)
            view, k = padded[:, :, rows, columns], i * kernel_size + j
            by_channel, by_pixel = a[:, :, i, j, None, None], b[:, k : k + 1]
            if combine == "mul":
                term = view * by_channel * by_pixel
            else:
                term = view * (by_channel + by_pixel)
            total = term if total is None else total + term
    assert total is not None
    return total.to(x.dtype)
