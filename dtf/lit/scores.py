"""Scores of an evaluation: every video counts exactly once, whatever the ranks, views and repeats.

Views of a video are averaged as softmax scores in float64 (the protocol of the field: mmaction2's
`average_clips="prob"`, SIFA; SlowFast and TAdaConv sum, which ranks alike).

Letters: V videos, C classes, B clips of a batch, N clips seen by one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dtf.errors import RunError

_VIEW_BITS = 20


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, ordered by video.

    Attributes:
        video_index: (V,) int64, ascending.
        label: (V,) int64.
        scores: (V, C) float64, mean softmax scores over the video's views; NaN for a broken video.
        num_views: (V,) int64, views that were averaged.
        errors: video index -> why the video could not be used. Such a video counts as wrong.
    """

    video_index: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    num_views: np.ndarray
    errors: dict[int, str]

    @cached_property
    def sound(self) -> np.ndarray:
        """(V,) bool: the video could be decoded."""
        return ~np.isin(self.video_index, list(self.errors))

    @cached_property
    def ranking(self) -> np.ndarray:
        """(V, min(5, C)) int64: best classes first, the lower number on a tie; -1 where broken."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :5]
        return np.where(self.sound[:, None], order, -1)

    @property
    def prediction(self) -> np.ndarray:
        """(V,) int64: best class, -1 where broken."""
        return self.ranking[:, 0]

    @property
    def top1(self) -> float:
        """Share of all videos, broken ones included, whose best class is right."""
        return _mean(self.prediction == self.label)

    @property
    def top5(self) -> float:
        """Share of all videos whose class is among the five best (all classes where there are fewer)."""
        return _mean((self.ranking == self.label[:, None]).any(axis=1))

    @property
    def loss(self) -> float:
        """Mean negative log of the averaged score of the right class, over sound videos."""
        rows = np.flatnonzero(self.sound)
        picked = self.scores[rows, self.label[rows]]
        return _mean(-np.log(np.maximum(picked, np.finfo(np.float32).tiny)))

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64: videos of class (row) that were taken for class (column), without broken ones."""
        num_classes = self.scores.shape[1]
        matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(matrix, (self.label[self.sound], self.prediction[self.sound]), 1)
        return matrix

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) videos and (C,) right ones of each class, broken ones included as wrong."""
        num_classes = self.scores.shape[1]
        total = np.bincount(self.label, minlength=num_classes)
        right = np.bincount(self.label[self.prediction == self.label], minlength=num_classes)
        return total, right

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that are logged: top1, top5, loss."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}

    def check(self, stage: str, max_bad_fraction: float) -> None:
        """Fail with the list when too many videos are broken, or where scores are no numbers.

        Raises:
            RunError: more than `max_bad_fraction` of the videos; or the network's scores are NaN, of which
                the ranking would make class 0.
        """
        odd = self.sound & ~np.isfinite(self.scores).all(axis=1)
        if odd.any():
            raise RunError(
                f"{stage}: the network's scores of {odd.sum()} of {len(odd)} videos are not finite: its "
                "weights are not, or numbers grow too large for trainer.precision (try bf16-mixed or 32-true)"
            )
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


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[int, str]]
"""(n,) videos, (n,) labels, (n, C) float64 sums over views, (n,) views, errors by video."""


class VideoScores:
    """Collects the scores of one evaluation on every process and puts them together at its end.

    Attributes:
        keep: is given videos, sums and views of each batch's sound videos, to keep them elsewhere.
        known: scores of videos that this evaluation does not read, on one process. `reset` leaves both.
    """

    def __init__(self) -> None:
        self.keep: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None
        self.known: Part | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._keys: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._errors: dict[int, str] = {}

    def update(
        self,
        probabilities: torch.Tensor,
        label: torch.Tensor,
        video_index: torch.Tensor,
        view_index: torch.Tensor,
        error: Sequence[str],
    ) -> None:
        """Add a batch.

        Args:
            probabilities: (B, C) softmax scores.
            label, video_index, view_index: (B,) integers.
            error: B texts, "" for a clip that was decoded.
        """
        video, view = video_index.cpu().numpy(), view_index.cpu().numpy()
        assert ((view >= 0) & (view < 1 << _VIEW_BITS)).all()
        self._keys.append((video.astype(np.int64) << _VIEW_BITS) | view)
        self._labels.append(label.cpu().numpy())
        self._scores.append(probabilities.float().cpu().numpy())
        for index, text in zip(video.tolist(), error, strict=True):
            if text:
                self._errors.setdefault(index, text)
        if self.keep is not None:
            keys, first = np.unique(self._keys[-1], return_index=True)
            videos, _, sums, num_views = _sum_views(keys, self._scores[-1][first])
            sound = ~np.isin(videos, list(self._errors))
            self.keep(videos[sound], sums[sound], num_views[sound])

    def compute(self) -> Evaluation:
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
        video_index, place = np.unique(all_videos, return_inverse=True)
        label = np.zeros(len(video_index), dtype=np.int64)
        sums = np.zeros((len(video_index), parts[0][2].shape[1]))
        num_views = np.zeros(len(video_index), dtype=np.int64)
        label[place] = np.concatenate([p[1] for p in parts])
        np.add.at(sums, place, np.concatenate([p[2] for p in parts]))
        np.add.at(num_views, place, np.concatenate([p[3] for p in parts]))
        errors: dict[int, str] = {}
        for p in parts:
            errors = {**p[4], **errors}
        errors = dict(sorted(errors.items()))
        sums /= num_views[:, None]
        sums[np.isin(video_index, list(errors))] = np.nan
        return Evaluation(video_index, label, sums, num_views, errors)


def _sum_views(keys: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """Videos, the first row of each, float64 sums of their rows and numbers of rows; keys ascend."""
    videos, start, count = np.unique(keys >> _VIEW_BITS, return_index=True, return_counts=True)
    return videos, start, np.add.reduceat(scores.astype(np.float64), start, axis=0), count


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


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
