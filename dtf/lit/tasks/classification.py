"""One class a video: softmax scores, averaged over a video's views; known by top-1.

Letters: V videos, C classes, B clips.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dtf.data.datamodule import VideoDataModule
from dtf.data.dataset import Batch
from dtf.files import replacing
from dtf.lit.mixing import Mixing
from dtf.lit.scores import VideoResult, VideoScores
from dtf.lit.tasks.task import Shown, Step, Table, Task
from dtf.models.heads import joined_heads, per_head
from dtf.runs.description import ACTIVATIONS
from dtf.runs.measure import Measure
from dtf.text import cell

CLASSES_IN_TABLE = 20
PAIRS_SHOWN = 50
CLASS_HEAD = ("class", "videos", "right", "accuracy")
PAIR_HEAD = ("class", "taken for", "videos")


class Classification(Task):
    """Tells classes apart: softmax and cross-entropy.

    In training, `train/top1` and `train/top5` count the clips that are right; where clips are mixed, by a
    clip's own class, whatever share of it is left.

    Args:
        data: tells the classes.
        label_smoothing: of the training loss, in [0, 1]; on top of mixed labels.
        mixing: mixup and cutmix of training batches, arguments of `dtf.lit.mixing.Mixing`; None: neither.

    Raises:
        ValueError: settings out of range, or fewer than two classes.
    """

    name = "classification"
    measures = (
        Measure("top1", "top-1", share=True),
        Measure("top5", "top-5", share=True),
    )
    counted = ("top1", "top5")
    activation = "softmax"

    def __init__(
        self, data: VideoDataModule, *, label_smoothing: float = 0.0, mixing: Mapping[str, Any] | None = None
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing!r}")
        self.class_names = list(data.class_names)
        if len(self.class_names) < 2:
            raise ValueError(
                f"the data has {len(self.class_names)} class, so there is nothing to tell apart: give at "
                "least two, each a folder of data.root/train or a name in data.class_names"
            )
        self.label_smoothing = label_smoothing
        self.mixing = Mixing.from_mapping(len(self.class_names), mixing)

    @property
    def outputs(self) -> Sequence[str]:
        """The classes."""
        return self.class_names

    def loss(self, network: nn.Module, batch: Batch) -> Step:
        """Cross-entropy of the batch, which is mixed first; of several heads the sum."""
        video, target, label = self.mixing(batch["video"], batch["label"])
        outputs = network(video)
        heads = per_head(outputs.float())
        losses = [F.cross_entropy(head, target, label_smoothing=self.label_smoothing) for head in heads]
        loss = torch.stack(losses).sum()
        found = joined_heads(outputs.detach())
        best = found.topk(min(5, found.shape[1]), dim=1).indices == label[:, None]
        sums = {"top1": (found.argmax(dim=1) == label).sum(), "top5": best.any(dim=1).sum()}
        return Step(loss, len(label), sums)

    def collector(self) -> VideoScores:
        """Softmax scores."""
        return VideoScores(Evaluation, ACTIVATIONS[self.activation], sums_to_one=True)


@dataclass(frozen=True)
class Evaluation(VideoResult):
    """What an evaluation found, ordered by video: `label` (V,) int64, `scores` (V, C) softmax scores."""

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

    def describe(self, data: VideoDataModule, stage: str) -> dict[str, Any]:
        """The result for results.json: measures, loss, broken videos, classes, confused pairs."""
        return results(self, data.class_names, self._paths(data, stage))

    def rows(self, found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
        """Videos, broken ones, a few classes and confused pairs."""
        return table_rows(found)

    def write(self, folder: Path, data: VideoDataModule, stage: str, title: str) -> None:
        """Write scores.csv and confusion.png."""
        write_scores(folder / "scores.csv", self, data.class_names, self._paths(data, stage))
        draw_confusion(folder / "confusion.png", self.confusion, data.class_names, title)

    def _paths(self, data: VideoDataModule, stage: str) -> list[str]:
        return [data.video_path(stage, i) for i in self.video_index.tolist()]

    def show(self, data: VideoDataModule, title: str) -> Shown:
        """The most confused classes, and tables of classes and pairs."""
        from dtf.view import pictures

        names, confusion = data.class_names, self.confusion
        chosen = pictures.most_confused(confusion)
        if len(chosen) < len(names):
            title += f": the {len(chosen)} most confused of {len(names)} classes"
        figure = pictures.confusion_figure(confusion, names, title, chosen)
        total, right = self.per_class()
        counts = zip(names, total.tolist(), right.tolist(), strict=True)
        classes = [(name, t, r, r / t if t else None) for name, t, r in counts]
        pairs = [(names[a], names[b], n) for a, b, n in confused_pairs(confusion, PAIRS_SHOWN)]
        tables: dict[str, Table] = {"classes": (CLASS_HEAD, classes), "confused_pairs": (PAIR_HEAD, pairs)}
        return Shown({"confusion": pictures.to_array(figure, 80)}, tables)

    def caption(self, data: VideoDataModule, video: int) -> str:
        """Truth and prediction."""
        names = data.class_names
        (row,) = np.flatnonzero(self.video_index == video)
        label, prediction = int(self.label[row]), int(self.prediction[row])
        mark = "right" if label == prediction else "wrong"
        score = self.scores[row, prediction]
        return f"{mark}: {names[label]}, taken for {names[prediction]} ({score:.0%})"


def results(evaluation: Evaluation, class_names: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """The result as plain data.

    Args:
        evaluation: what was found.
        class_names: C names.
        paths: V paths, in the order of `evaluation.video_index`.
    """
    total, right = evaluation.per_class()
    broken = [
        {"video": path, "error": evaluation.errors[i]}
        for path, i in zip(paths, evaluation.video_index.tolist(), strict=True)
        if i in evaluation.errors
    ]
    return {
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        # None where all videos are broken.
        "loss": evaluation.loss if math.isfinite(evaluation.loss) else None,
        "videos": len(evaluation.video_index),
        "views_per_video": sorted(set(evaluation.num_views.tolist())),
        "broken_videos": broken,
        "per_class": {
            name: {"videos": int(t), "right": int(r), "accuracy": r / t if t else None}
            for name, t, r in zip(class_names, total.tolist(), right.tolist(), strict=True)
        },
        "confused_pairs": [
            {"class": class_names[a], "taken_for": class_names[b], "videos": n}
            for a, b, n in confused_pairs(evaluation.confusion)
        ],
    }


def confused_pairs(confusion: np.ndarray, limit: int = 10) -> list[tuple[int, int, int]]:
    """The largest entries off the diagonal of a (C, C) matrix: (class, taken for, videos)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(*divmod(int(i), len(wrong)), int(wrong.flat[i])) for i in order]
    return [(a, b, n) for a, b, n in pairs if n > 0]


def write_scores(
    path: Path, evaluation: Evaluation, class_names: Sequence[str], paths: Sequence[str]
) -> None:
    """One row per video: path, class, prediction, views, error and the score of each class."""
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        head = ["video", "class", "prediction", "right", "views", "error"]
        names = [cell(name) for name in class_names]
        writer.writerow(head + [f"score:{name}" for name in names])
        for row, index in enumerate(evaluation.video_index.tolist()):
            label, prediction = int(evaluation.label[row]), int(evaluation.prediction[row])
            sound = prediction >= 0
            writer.writerow(
                [
                    cell(paths[row]),
                    names[label],
                    names[prediction] if sound else "",
                    int(prediction == label),
                    int(evaluation.num_views[row]),
                    cell(evaluation.errors.get(index, "")),
                    *(f"{s:.9g}" if sound else "" for s in evaluation.scores[row]),
                ]
            )


def draw_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Draw a (C, C) matrix of counts, rows normalised to shares of the class.

    Few classes get their numbers written in; many get a large picture whose colours bring out rare
    confusions.
    """
    from dtf.view.figures import save
    from dtf.view.pictures import confusion_figure

    figure = confusion_figure(confusion, class_names, title)
    with replacing(path, "wb") as file:
        save(figure, file, dpi=110)


def table_rows(found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """Lines of the terminal's table, in sections; `found` from `results`, with its "kind"."""
    views = ", ".join(str(v) for v in found["views_per_video"])
    kind = found["kind"]
    lines = [(f"{kind}s", f"{found['videos']}, {views} view(s) each")]
    lines += [("broken, counted as wrong", entry["error"]) for entry in found["broken_videos"][:10]]
    if len(found["broken_videos"]) > 10:
        lines.append(("", f"and {len(found['broken_videos']) - 10} more, see results.json"))
    sections = [lines]
    if len(found["per_class"]) <= CLASSES_IN_TABLE:
        classes = []
        for name, entry in found["per_class"].items():
            share = f"no {kind}s" if entry["accuracy"] is None else f"{entry['accuracy']:.1%}"
            classes.append((name, f"{share}  ({entry['right']} of {entry['videos']})"))
        sections.append(classes)
    pairs = found["confused_pairs"][:5]
    sections.append([("confused", f"{p['class']} → {p['taken_for']}  ({p['videos']})") for p in pairs])
    return sections


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
