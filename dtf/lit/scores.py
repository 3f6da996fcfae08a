"""Scores of an evaluation: every video counts exactly once, whatever the ranks, views and repeats.

Views of a video are averaged in float64: softmax scores where a task classifies (the protocol of the field:
mmaction2's `average_clips="prob"`, SIFA; SlowFast and TAdaConv sum, which ranks alike).

Letters: V videos, C numbers of each clip (classes), B clips of a batch, N clips seen by one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dtf.data.dataset import Batch
from dtf.errors import RunError
from dtf.lit.tasks.task import Collector, Result

_VIEW_BITS = 20


@dataclass(frozen=True)
class VideoResult(Result):
    """Scores of videos, averaged over their views: what a task's result is made of.

    Attributes:
        video_index: (V,) int64, ascending.
        label: (V, ...), targets.
        scores: (V, C) float64, means over the video's views; NaN for a broken video.
        num_views: (V,) int64, views that were averaged.
        errors: video index -> why the video could not be used. Such a video counts as wrong.
    """

    video_index: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    num_views: np.ndarray
    errors: dict[int, str]

    def check(self, stage: str, max_bad_fraction: float) -> None:
        """Fail with the list when too many videos are broken, or where scores are no numbers.

        Raises:
            RunError: more than `max_bad_fraction` of the videos; or the network's scores are NaN, of which
                a ranking would make something all the same.
        """
        odd = self.sound & ~np.isfinite(self.scores).all(axis=1)
        if odd.any():
            raise RunError(
                f"{stage}: the network's scores of {odd.sum()} of {len(odd)} videos are not finite: its "
                "weights are not, or numbers grow too large for trainer.precision (try bf16-mixed or 32-true)"
            )
        super().check(stage, max_bad_fraction)


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[int, str]]
"""(n,) videos, (n, ...) targets, (n, C) float64 sums over views, (n,) views, errors by video."""


class VideoScores(Collector):
    """Collects the scores of one evaluation on every process and puts them together at its end.

    Args:
        result: the result of a task.
        activation: makes scores (B, C) of a network's outputs (B, C); None: they are the scores.
        sums_to_one: a clip's scores do: then eval.py keeps them (`dtf.lit.kept_scores`).

    Attributes:
        keep: is given videos, sums and views of each batch's sound videos, to keep them elsewhere.
        known: scores of videos that this evaluation does not read, on one process. `reset` leaves both.
    """

    def __init__(
        self,
        result: type[VideoResult],
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        sums_to_one: bool = False,
    ) -> None:
        self.result = result
        self.activation = activation or nn.Identity()
        self.sums_to_one = sums_to_one
        self.keep: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None
        self.known: Part | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._keys: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._errors: dict[int, str] = {}

    def update(self, network: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> None:
        """Add a batch: the scores of its clips."""
        scores = self.activation(network(batch["video"]).float())
        errors = [str(videos[0]) if videos else "" for videos in batch["error"]]
        self.add(scores, batch["label"], batch["video_index"], batch["view_index"], errors)

    def add(
        self,
        scores: torch.Tensor,
        label: torch.Tensor,
        video_index: torch.Tensor,
        view_index: torch.Tensor,
        error: Sequence[str],
    ) -> None:
        """Add the scores of a batch.

        Args:
            scores: (B, C).
            label: (B, ...), targets.
            video_index, view_index: (B,) integers.
            error: B texts, "" for a clip that was decoded.
        """
        video, view = video_index.cpu().numpy(), view_index.cpu().numpy()
        assert ((view >= 0) & (view < 1 << _VIEW_BITS)).all()
        self._keys.append((video.astype(np.int64) << _VIEW_BITS) | view)
        self._labels.append(label.cpu().numpy())
        self._scores.append(scores.float().cpu().numpy())
        for index, text in zip(video.tolist(), error, strict=True):
            if text:
                self._errors.setdefault(index, text)
        if self.keep is not None:
            keys, first = np.unique(self._keys[-1], return_index=True)
            videos, _, sums, num_views = _sum_views(keys, self._scores[-1][first])
            sound = ~np.isin(videos, list(self._errors))
            self.keep(videos[sound], sums[sound], num_views[sound])

    def compute(self) -> Result:
        """Put the scores of all processes together. Every process must call it and gets the same answer."""
        if not self._keys and self.known is None and _world_size() == 1:
            raise RunError(
                "the evaluation has no videos: look at the list of this split, or at limit_*_batches"
            )
        keys = np.concatenate(self._keys or [np.empty(0, np.int64)])
        # A clip that came twice (padding of the last batch) counts once: first within this process, ...
        keys, first = np.unique(keys, return_index=True)
        # ... then among the processes, where the lowest one keeps it.
        rank, taken = _rank(), np.empty(0, np.int64)
        for other, theirs in enumerate(_all_gather(keys)):
            if other < rank:
                taken = np.union1d(taken, theirs)
        keep = ~np.isin(keys, taken)
        keys, first = keys[keep], first[keep]

        mine = [] if self.known is None else [self.known]
        if len(keys):
            videos, start, sums, num_views = _sum_views(keys, np.concatenate(self._scores)[first])
            labels = np.concatenate(self._labels)[first]
            mine.append((videos, labels[start], sums, num_views, self._errors))
        parts = [part for parts in _all_gather(mine) for part in parts]
        if not parts:
            raise RunError("the evaluation has no videos: look at the list of this split")

        all_videos = np.concatenate([p[0] for p in parts])
        video_index, first, place = np.unique(all_videos, return_index=True, return_inverse=True)
        label = np.concatenate([p[1] for p in parts])[first]
        sums = np.zeros((len(video_index), parts[0][2].shape[1]))
        num_views = np.zeros(len(video_index), dtype=np.int64)
        np.add.at(sums, place, np.concatenate([p[2] for p in parts]))
        np.add.at(num_views, place, np.concatenate([p[3] for p in parts]))
        errors: dict[int, str] = {}
        for p in parts:
            errors = {**p[4], **errors}
        errors = dict(sorted(errors.items()))
        sums /= num_views[:, None]
        sums[np.isin(video_index, list(errors))] = np.nan
        return self.result(video_index, label, sums, num_views, errors)


def _sum_views(keys: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """Videos, the first row of each, float64 sums of their rows and numbers of rows; keys ascend."""
    videos, start, count = np.unique(keys >> _VIEW_BITS, return_index=True, return_counts=True)
    return videos, start, np.add.reduceat(scores.astype(np.float64), start, axis=0), count


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _all_gather(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    if _world_size() == 1:
        return [value]
    values: list[Any] = [None] * _world_size()
    dist.all_gather_object(values, value)
    return values
