"""How a clip reaches an image backbone: frames joined into steps, steps folded into the batch.

Letters: B clips, T steps, L frames of a clip, k frames that a step joins, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tubelets:
    """Steps of `kernel` frames, one every `stride` frames, as the channels of an image.

    A 3-D stem of these sizes over time is a 2-D stem over 3 * kernel channels, channel index c * kernel + j:
    exactly the same sums.

    Attributes:
        kernel: Frames that a step joins.
        stride: Frames from one step to the next; less than `kernel`: steps overlap.
        padding: Black frames ahead of the first and behind the last one.
    """

    kernel: int
    stride: int
    padding: int = 0

    def num_steps(self, clip_length: int) -> int:
        """T of a clip."""
        return (clip_length + 2 * self.padding - self.kernel) // self.stride + 1

    def fold(self, video: Tensor) -> Tensor:
        """(B, 3, L, H, W) -> (B*T, 3*k, H, W), channels_last."""
        if self.kernel == self.stride and not self.padding:
            steps = video.unflatten(2, (-1, self.kernel))  # (B, 3, T, k, H, W)
        else:
            video = F.pad(video, (0, 0, 0, 0, self.padding, self.padding))
            last = self.stride * (self.num_steps(video.shape[2] - 2 * self.padding) - 1)
            taps = [video[:, :, j : j + last + 1 : self.stride] for j in range(self.kernel)]
            steps = torch.stack(taps, dim=3)
        frames = steps.permute(0, 2, 1, 3, 4, 5).flatten(2, 3).flatten(0, 1)
        # Measured on CPU: convolutions are up to twice as fast on channels_last frames, and temporal layers
        # then see a clip whose channels lie together.
        return frames.contiguous(memory_format=torch.channels_last)

    def inflate(self, kernel: Tensor) -> Tensor:
        """An image stem's weight (O, 3, h, w) -> (O, 3*k, h, w): in the middle of the step, zeros elsewhere.

        Source: Long et al., arXiv 2211.08252, as released: temporal position k // 2.
        """
        inflated = kernel.new_zeros(kernel.shape[0], 3, self.kernel, *kernel.shape[2:])
        inflated[:, :, self.kernel // 2] = kernel
        return inflated.flatten(1, 2)


def joined(clip_length: int, stride: int) -> Tubelets:
    """Steps of `stride` frames each, side by side.

    Raises:
        ValueError: They do not fill the clip.
    """
    if clip_length % stride:
        raise ValueError(f"clip_length must be a multiple of temporal_stride, got {clip_length} and {stride}")
    return Tubelets(stride, stride)


def overlapping(clip_length: int, stride: int) -> Tubelets:
    """Steps that reach to the middle of their neighbours: 2 * `stride` - 1 frames each, one every `stride`.

    Raises:
        ValueError: `stride` does not divide the clip.
    """
    joined(clip_length, stride)
    return Tubelets(2 * stride - 1, stride, stride - 1)
