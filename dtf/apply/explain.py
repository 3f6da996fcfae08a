"""What an explanation of a network's answer is made of: the clip, Grad-CAM, the layers that are shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dtf.data.clip_view import ClipView
from dtf.data.dataset import fixed_views
from dtf.data.isolated import ReadingProcess
from dtf.data.storage import open_video
from dtf.layers.temporal import Maps
from dtf.models import VideoNetwork
from dtf.text import nearest


@dataclass(frozen=True)
class Clip:
    """One clip of a video, as the network saw it.

    Attributes:
        frames: (T, S, S, 3) uint8.
        indices: (T,) their numbers in the video.
        seconds: (T,) when each frame is shown; None for frames in a folder and pictures, which do not say.
    """

    frames: np.ndarray
    indices: np.ndarray
    seconds: np.ndarray | None

    @property
    def duration(self) -> float:
        """Seconds that the T frames stand for: T times their usual distance; 0 where that is unknown."""
        if self.seconds is None or len(self.seconds) < 2:
            return 0.0
        return max(0.0, float(np.median(np.diff(self.seconds)))) * len(self.seconds)

    def time(self, frame: int) -> str:
        """When a frame is shown, as text."""
        return f"frame {self.indices[frame]}" if self.seconds is None else f"{self.seconds[frame]:.2f} s"


def read_clip(view: ClipView, video: str | os.PathLike[str], max_read_seconds: float | None = 60.0) -> Clip:
    """The central clip and crop of a video (a file, a folder of frames, a picture), cut as in a test.

    It is read in a process of its own, which may hang or crash without harm.

    Raises:
        VideoError: it cannot be read, or takes longer than `max_read_seconds` (None: no limit).
    """
    sampler, transform = view.sampler(), view.crops()
    size, path = transform.crop_px, os.path.abspath(video)
    process = ReadingProcess((1, sampler.clip_length, size, size, 3))

    def read() -> tuple[list[int], list[float] | None]:
        with open_video(path) as reader:
            fixed_views(reader, sampler, transform, out=process.memory.numpy())
            [indices] = sampler.test(reader.num_frames, reader.fps)
            times = reader.frame_seconds
            return indices.tolist(), None if times is None else times[indices].tolist()

    with closing(process):
        (indices, seconds), frames = process.call(path, read, seconds=max_read_seconds)
    times = None if seconds is None else np.array(seconds)
    return Clip(frames[0].numpy(), np.array(indices), times)


def grad_cam(network: VideoNetwork, video: torch.Tensor, label: int) -> torch.Tensor:
    """Grad-CAM in space and time: which features of a network's last stage speak for a class.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017. A channel's weight is the mean gradient of the class's
    logit over all places; here also over all steps, as the networks of this package average over both. For a
    stage followed by a mean and a linear layer (the ResNets) this is that layer's own sum before the mean.

    Args:
        network: in evaluation mode.
        video: (B, 3, clip_length, H, W), normalised.
        label: the class.

    Returns:
        (B, T, h, w) >= 0, in units of the logit times the number of places; 0 where nothing speaks for it.

    Raises:
        ValueError: the network has no one last stage, or it gives no map of features.
    """
    kept: list[torch.Tensor] = []
    handle = network.last_stage.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        # Gradients reach the stage even if no weight asks for one.
        with torch.enable_grad():
            logits = network(video.detach().requires_grad_())
            features = kept[-1]
            if not isinstance(features, torch.Tensor) or features.dim() not in (3, 4, 5):
                raise ValueError(
                    "Grad-CAM needs one map of features with places, (B, C, T, h, w), folded or tokens; "
                    f"the last stage of {network.name} gives {_shape(features)}"
                )
            (gradient,) = torch.autograd.grad(logits[:, label].sum(), features)
    finally:
        handle.remove()
    features, gradient = network.unfold(features.detach()), network.unfold(gradient)
    # The mean gradient times the number of places: their sum.
    weights = gradient.sum(dim=(2, 3, 4), keepdim=True)
    return (weights * features).sum(dim=1).relu()


def _shape(features: Any) -> str:
    return str(tuple(features.shape)) if hasattr(features, "shape") else type(features).__name__


def choose_blocks(responses: Mapping[str, Maps], wanted: str = "") -> list[str]:
    """Names of the blocks to draw.

    Args:
        responses: of :func:`dtf.models.layer_maps`.
        wanted: names separated by commas, each a block's name or the end of exactly one; "all"; or "": the
            last block of every resolution.

    Raises:
        ValueError: a name that is no block's, or several blocks'.
    """
    if wanted == "all":
        return list(responses)
    if not wanted:
        return list({maps.values.shape[2:]: name for name, maps in responses.items()}.values())
    chosen = []
    for part in wanted.split(","):
        found = [name for name in responses if name == part or name.endswith("." + part)]
        if part in responses:
            found = [part]
        if len(found) != 1:
            what = (
                f"there is no block {part!r}{nearest(part, responses)}"
                if not found
                else f"several blocks end in {part!r}"
            )
            raise ValueError(f"{what} (there are: {', '.join(responses)})")
        chosen += found
    return chosen
