"""Windows around pixels: offsets in row-major order and zero-padded shifts."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def offsets(kernel_size: int, dilation: int) -> list[tuple[int, int]]:
    """Returns the K*K offsets (dh, dw) of a window, row-major, in pixels."""
    half = (kernel_size - 1) // 2
    steps = [(i - half) * dilation for i in range(kernel_size)]
    return [(dh, dw) for dh in steps for dw in steps]


def neighbours(x: torch.Tensor, kernel_size: int, dilation: int) -> torch.Tensor:
    """Returns, for (..., H, W), the values (K*K, ..., H, W) at each offset; zero outside the frame."""
    pad = (kernel_size - 1) // 2 * dilation
    height, width = x.shape[-2:]
    padded = F.pad(x, (pad, pad, pad, pad))
    return torch.stack(
        [
            padded[..., pad + dh : pad + dh + height, pad + dw : pad + dw + width]
            for dh, dw in offsets(kernel_size, dilation)
        ]
    )
