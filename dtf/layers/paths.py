"""Stochastic depth of clips: what a block adds is dropped for all steps of a clip, or for none.

Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016 (arXiv 1603.09382).
"""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training zero with probability ``drop_prob``, drawn once for each clip, else scaled up for it.

    Args:
        drop_prob: The probability.
        num_steps: T of folded frames; 1: clips are given.

    Shape:
        (B*T, ...), the steps of a clip following each other -> same shape and dtype.
    """

    def __init__(self, drop_prob: float, num_steps: int = 1) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.num_steps = num_steps

    def forward(self, frames: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return frames
        kept = 1 - self.drop_prob
        clips = frames.new_empty(frames.shape[0] // self.num_steps).bernoulli_(kept).div_(kept)
        return frames * clips.repeat_interleave(self.num_steps).view(-1, *[1] * (frames.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.drop_prob:g}"
