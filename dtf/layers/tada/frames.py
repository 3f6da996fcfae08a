"""What the layers of TAda share: clips and their folded frames, and what neighbouring frames have."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Norm = TypeVar("Norm", bound=nn.Module)


def fold(clip: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W); a view of a clip in channels_last_3d."""
    return clip.transpose(1, 2).flatten(0, 1)


def unfold(frames: Tensor, clips: int, steps: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W), a view."""
    return frames.unflatten(0, (clips, steps)).transpose(1, 2)


def check_clip(layer: str, x: Tensor, channels: int) -> None:
    """`ValueError` in the layer's name unless x is a clip of so many channels."""
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"{layer} takes (B, {channels}, T, H, W), got {tuple(x.shape)}")


def mean_of_neighbours(frames: Tensor, num_steps: int) -> Tensor:
    """Mean of each frame, the one before it and the one behind it; beyond the clip is zero, which counts.

    For every T: the first and the last frame are divided by 3 as well, and so is one that is alone.

    Args:
        frames: Folded frames (B*T, C, H, W), any memory layout.
        num_steps: T.

    Returns:
        The same shape.
    """
    steps = frames.unflatten(0, (frames.shape[0] // num_steps, num_steps))
    black = torch.zeros_like(steps[:, :1])
    before = torch.cat([black, steps[:, :-1]], dim=1)
    behind = torch.cat([steps[:, 1:], black], dim=1)
    return ((before + steps + behind) / 3).flatten(0, 1)


def silent(norm: Norm) -> Norm:
    """A norm that gives zero until it has learnt something, and says so to a network's initialiser."""
    assert isinstance(norm, nn.BatchNorm2d | nn.LayerNorm)
    nn.init.zeros_(norm.weight)
    norm.skip_init = True  # type: ignore[assignment]  # nn.Module declares no attributes of other types
    return norm


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of folded frames: (B*T, C, H, W) -> same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, frames: Tensor) -> Tensor:
        # Of channels_last frames both are views.
        return super().forward(frames.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
