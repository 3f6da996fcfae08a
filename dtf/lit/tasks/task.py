"""What the house asks of a task, and of what an evaluation of it finds.

A task is a file of its own and a file in conf/task/ that names its class. A `Task` says what the target of a
video is, the loss and what an evaluation collects; a `Result` says what was found. Training, checkpoints,
sweeps, loggers, tables and the report know both by what stands here and by nothing else.

Letters: B clips, V videos.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from dtf.data.datamodule import VideoDataModule
from dtf.data.dataset import Batch
from dtf.data.lists import VideoIndex
from dtf.errors import RunError
from dtf.runs.measure import Measure

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Heads of the columns, and rows of texts, numbers or None."""


@dataclass(frozen=True)
class Step:
    """The loss of a training batch, and what is counted in it.

    Attributes:
        loss: (), which the gradient is taken of: the mean over the clips.
        size: clips.
        sums: name -> (), sum over the clips; the mean over the clips of an epoch is logged as `train/NAME`.
            The names are `Task.counted`.
    """

    loss: torch.Tensor
    size: int
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What dashboards show of a result.

    Attributes:
        pictures: name -> (H, W, 3) uint8.
        tables: name -> table.
    """

    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)


class Result(ABC):
    """What an evaluation found, the same on every process.

    Attributes:
        video_index: (V,) int64, ascending.
        errors: video index -> why the video could not be used.
    """

    video_index: np.ndarray
    errors: dict[int, str]

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What is logged, as "val/NAME" or "test/NAME"; among it the task's measures."""

    @property
    def sound(self) -> np.ndarray:
        """(V,) bool: the video could be decoded."""
        return ~np.isin(self.video_index, list(self.errors))

    def check(self, stage: str, max_bad_fraction: float) -> None:
        """Fail with the list when too many videos are broken.

        Raises:
            RunError: more than `max_bad_fraction` of the videos.
        """
        if refusal := self.refusal(stage, max_bad_fraction):
            raise RunError(refusal)

    def refusal(self, stage: str, max_bad_fraction: float) -> str:
        """Why this is no result: too many of the videos are broken. "" where it is one."""
        bad, total = len(self.errors), len(self.video_index)
        if bad <= max_bad_fraction * total:
            return ""
        reasons = list(self.errors.values())
        shown = "; ".join(reasons[:10]) + (f"; and {bad - 10} more" if bad > 10 else "")
        return (
            f"{stage}: {bad} of {total} videos are broken, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows: {shown}. "
            "Repair them, take them off the list, or raise data.max_bad_fraction"
        )

    def describe(self, data: VideoDataModule, stage: str) -> dict[str, Any]:
        """The result for results.json, as plain data.

        A task adds what it has. The report shows of every task `tables`, a list of {"title", "head", "rows"},
        and `pictures`, a list of {"file", "alt"}: PNG files that `write` leaves in the run's folder.

        Args:
            data: names the videos.
            stage: "val" or "test".
        """
        return {
            # None where all videos are broken.
            **{name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "videos": len(self.video_index),
            "broken_videos": [
                {"video": data.video_path(stage, index), "error": error}
                for index, error in self.errors.items()
            ],
        }

    def rows(self, found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
        """Lines of the table in the terminal below the measures, in sections.

        Args:
            found: from `describe`, with "kind", "video" or "picture".
        """
        broken = found["broken_videos"]
        lines = [
            (f"{found['kind']}s", str(found["videos"])),
            *(("broken", entry["error"]) for entry in broken[:10]),
        ]
        if len(broken) > 10:
            lines.append(("", f"and {len(broken) - 10} more, see results.json"))
        return [lines]

    def write(self, folder: Path, data: VideoDataModule, stage: str, title: str) -> None:
        """Write files of the task's own into the run's folder.

        Args:
            folder: of the run.
            data: names the videos.
            stage: "val" or "test".
            title: of pictures.
        """
        return

    def show(self, data: VideoDataModule, title: str) -> Shown:
        """What dashboards show. `title`: of pictures."""
        return Shown()

    def caption(self, data: VideoDataModule, video: int) -> str:
        """What was found in a sound video, in a line."""
        return ""


class Collector(ABC):
    """Collects what one process sees of an evaluation; every video counts once on any number of processes."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was added."""

    @abstractmethod
    def update(self, network: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> None:
        """Add a batch.

        Args:
            network: (B, 3, T, H, W), any B -> (B, ...), in as many pieces as memory asks for.
            batch: all views of some videos, possibly of some that came before: the last batch is filled up.
        """

    @abstractmethod
    def compute(self) -> Result:
        """Put together what all processes have. Every process must call it and gets the same answer."""


class Task(ABC):
    """What a run is about. It is made for the run's data, whose classes are known.

    Args:
        data: of the run.
        label_smoothing, mixing: the settings of these names. A task without a use for them refuses them.

    Attributes:
        name: of its file in conf/task/.
        measures: what results are known by, the headline first: it chooses the best checkpoint and sorts
            sweeps.
        counted: names of what is counted in training, `Step.sums`.
        activation: how a clip's outputs become its scores, a name in `dtf.runs.description.ACTIVATIONS`:
            files of weights and graphs keep it for who applies them. "none": they are the scores.

    Raises:
        ValueError: settings that the task cannot follow.
    """

    name: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    counted: ClassVar[tuple[str, ...]] = ()
    activation: ClassVar[str] = "none"

    def __init__(
        self, data: VideoDataModule, *, label_smoothing: float = 0.0, mixing: Mapping[str, Any] | None = None
    ) -> None:
        if label_smoothing or any((mixing or {}).get(way) for way in ("mixup", "cutmix")):
            raise ValueError(f"task={self.name} has no use for label_smoothing and mixing: leave them out")

    @classmethod
    def headline(cls) -> Measure:
        """The measure that a result is known by."""
        return cls.measures[0]

    @classmethod
    def description(cls) -> dict[str, Any]:
        """Plain data: what results.json and about.json say of the task (`dtf.runs.measure` reads it)."""
        return {"name": cls.name, "measures": [asdict(measure) for measure in cls.measures]}

    @property
    @abstractmethod
    def outputs(self) -> Sequence[str]:
        """Names of the numbers that the network gives for each clip; files of weights keep them."""

    def target(self, index: VideoIndex, video: int, label: int) -> Any:
        """What is to be found in a video, `label` of a batch once it is collated: number, tensor or mapping.

        Args:
            index: the videos of a split.
            video: one of them.
            label: its class, that of the mirrored video where mirroring changes it.
        """
        return label

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Step:
        """The loss of a training batch, whose clips are normalised. What it draws comes from torch.

        Networks give (B, outputs); where scores are a softmax, those with several heads give (B, heads,
        outputs), to be taken one by one: `dtf.models.heads.per_head`.
        """

    @abstractmethod
    def collector(self) -> Collector:
        """An empty collector for evaluations."""
