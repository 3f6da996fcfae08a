"""Mixup and cutmix of the clips in a batch, by torchvision, on the device.

Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899 (one box for all frames of a clip). One of the two
per batch, as timm, PySlowFast and MViT do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from dtf.text import nearest
from dtf.values import is_number

_DEFAULTS = {"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5}


class Mixing:
    """Mixes each clip of a batch with another one, and their labels alike.

    Each batch is mixed in one way, with one share: cutmix or mixup as `switch` says where both are on.
    Partners are drawn, so that copies of one video that lie side by side (repeated augmentation) meet others.
    Draws from torch's global generator on the CPU.

    Args:
        num_classes: C.
        mixup: alpha of the Beta(alpha, alpha) that the share is drawn from; 0: no mixup. 0.8 is usual.
        cutmix: alpha of the share of the area that is kept; 0: no cutmix. 1 is usual.
        probability: that a batch is mixed at all.
        switch: probability of cutmix where both are on.

    Raises:
        ValueError: values out of range, all faults at once; unknown settings.
    """

    def __init__(self, num_classes: int, **settings: float) -> None:
        for key in settings:
            if key not in _DEFAULTS:
                raise ValueError(f"there is no setting mixing.{key}{nearest(key, _DEFAULTS)}")
        settings = _DEFAULTS | settings
        faults = []
        for key, value in settings.items():
            high = 1.0 if key in ("probability", "switch") else 100.0
            if not is_number(value) or not 0 <= value <= high:
                faults.append(f"mixing.{key} must be a number in 0..{high:g}, got {value!r}")
        if faults:
            raise ValueError("; ".join(faults))
        self.probability, self.switch = settings["probability"], settings["switch"]
        self.ways: list[Any] = [
            way(alpha=float(settings[name]), num_classes=num_classes)
            for name, way in (("mixup", v2.MixUp), ("cutmix", v2.CutMix))
            if settings[name] > 0
        ]

    @classmethod
    def from_mapping(cls, num_classes: int, settings: Mapping[str, Any] | None) -> Mixing:
        """Of plain data (a config node)."""
        return cls(num_classes, **{str(key): value for key, value in (settings or {}).items()})

    def __call__(
        self, video: torch.Tensor, label: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            video: (B, 3, T, H, W), floating.
            label: (B,), classes.

        Returns:
            The clips in a new order, mixed; their labels, (B, C) and summing to 1 per clip, or (B,) classes
            where nothing was mixed; the class of each clip before it was mixed, (B,).
        """
        if not self.ways or torch.rand(()) >= self.probability:
            return video, label, label
        way = self.ways[-1 if torch.rand(()) < self.switch else 0]
        # torchvision mixes each clip with its neighbour.
        order = torch.randperm(len(video)).to(video.device)
        video, label = video[order], label[order]
        mixed, target = way(tv_tensors.Video(video), label)
        return mixed.as_subclass(torch.Tensor), target, label
