"""Decoupled dynamic filter written for reading: every neighbour stacked, weighted and summed."""

from __future__ import annotations

from torch import Tensor

from dtf.ops.common.window import neighbours


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
    height, width = spatial_filter.shape[2:]
    values = neighbours(x, kernel_size, dilation)[..., ::stride, ::stride]
    values = values[..., :height, :width]  # (K*K, B, C, H', W')
    a = channel_filter.flatten(2).permute(2, 0, 1)[..., None, None]  # (K*K, B, C, 1, 1)
    b = spatial_filter.transpose(0, 1).unsqueeze(2)  # (K*K, B, 1, H', W')
    filters = a * b if combine == "mul" else a + b
    return (filters * values).sum(dim=0)
