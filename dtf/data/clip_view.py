"""The clip view: how a network sees a video. Which frames, what size and crop, which numbers.

It is made from the data settings and stored with the weights; training, evaluation, prediction, explanation,
features, reports and dashboards all read clips through it.

Shape letters: B clips, C = 3 colours, T frames of a clip, S side of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from dtf.data.lists import raise_faults
from dtf.data.sampling import FrameSampler
from dtf.data.settings import build, known
from dtf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Interpolation, TestTransform, normalize

STAGES = ("train", "val", "test")
CLIP_KEYS = (
    "clip_length",
    "frame_stride",
    "crop_px",
    "short_side_px",
    "interpolation",
    "sampling",
    "mean",
    "std",
)
"""Names of the settings that make a clip view: right for every data set that a network is evaluated on."""


@dataclass(frozen=True)
class ClipView:
    """How a network sees a video.

    Args:
        clip_length: frames of a clip, T.
        frame_stride: frames from one frame of a clip to the next (dense sampling only).
        crop_px: side of the square clips in pixels, S.
        short_side_px: evaluation: short side of the resized frame in pixels; None: crop_px.
        interpolation: evaluation: how frames are resized, "bilinear" or "bicubic"; None: bilinear.
        sampling: for train, val and test the other arguments of `FrameSampler`.
        mean, std: of each colour for values in 0..1.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    clip_length: int = 16
    frame_stride: int = 4
    crop_px: int = 224
    short_side_px: int | None = None
    interpolation: Interpolation | None = None
    sampling: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.std]
        good = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        if not good or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            wanted = "mean and std need three numbers each, std above 0, got"
            raise_faults("data", [f"{wanted} {list(self.mean)} and {list(self.std)}"])
        known(self.sampling, STAGES, "data.sampling")
        # What is wrong is told now, not by the first video.
        self.crops(1)
        _ = self._samplers

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ClipView:
        """The view in data settings or in a file of weights; whatever else they hold is left aside.

        Raises:
            ValueError: as above, or a setting is missing.
        """
        missing = [key for key in CLIP_KEYS if key not in settings]
        if missing:
            raise ValueError(f"the settings do not say how clips are taken: no {', '.join(missing)}")
        values = {key: settings[key] for key in CLIP_KEYS}
        values |= {key: tuple(values[key]) for key in ("mean", "std")}
        return cls(**values | {"sampling": dict(values["sampling"] or {})})

    def settings(self) -> dict[str, Any]:
        """Plain data that `from_settings` takes, as files of weights hold it."""
        found = {key: getattr(self, key) for key in CLIP_KEYS}
        sampling = {stage: None if v is None else dict(v) for stage, v in self.sampling.items()}
        return found | {"sampling": sampling, "mean": list(self.mean), "std": list(self.std)}

    @cached_property
    def _samplers(self) -> dict[str, FrameSampler]:
        shared = {"clip_length": self.clip_length, "frame_stride": self.frame_stride}
        return {
            stage: build(FrameSampler, shared, self.sampling.get(stage), f"data.sampling.{stage}")
            for stage in STAGES
        }

    def sampler(self, stage: str = "test") -> FrameSampler:
        """What chooses the frames of "train", "val" or "test" clips."""
        return self._samplers[stage]

    def crops(self, num_crops: int = 1) -> TestTransform:
        """What resizes a frame and cuts M crops out of it, 1 or 3."""
        return TestTransform(self.crop_px, self.short_side_px, num_crops, self.interpolation)

    def normalize(self, video: torch.Tensor) -> torch.Tensor:
        """(B, C, T, S, S) uint8 -> float32, as networks take it."""
        return normalize(video, self.mean, self.std)
