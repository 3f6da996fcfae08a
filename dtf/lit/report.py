"""What a run leaves behind: results.json, scores as CSV, a picture of the confusions, a table."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dtf.data.datamodule import VideoDataModule
from dtf.files import replacing, write_json
from dtf.lit.scores import Evaluation
from dtf.runs.command import RESULTS
from dtf.text import cell, markup

CLASSES_IN_TABLE = 20


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


def write_all(
    folder: Path,
    evaluation: Evaluation,
    data: VideoDataModule,
    stage: str,
    title: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write results.json, scores.csv and confusion.png.

    Args:
        folder: where to.
        evaluation: what was found.
        data: names the classes and videos.
        stage: "val" or "test".
        title: of the picture.
        about: plain data that goes into results.json beside the figures.

    Returns:
        The figures, from `results`.
    """
    paths = [data.video_path(stage, i) for i in evaluation.video_index.tolist()]
    found = results(evaluation, data.class_names, paths)
    write_scores(folder / "scores.csv", evaluation, data.class_names, paths)
    draw_confusion(folder / "confusion.png", evaluation.confusion, data.class_names, title)
    # Written last: it marks a run as finished.
    split = {"split": stage, "split_is": data.describe_split(stage)}
    write_json(folder / RESULTS, found | split | dict(about))
    return found


def write_untested(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write results.json of a run that has videos for training only. Returns what it found: nothing."""
    write_json(folder / RESULTS, about)
    return {}


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


def print_results(title: str, found: dict[str, Any], notes: Sequence[tuple[str, str]]) -> None:
    """Print the result as a table.

    Args:
        title: above the table.
        found: from `results`; empty: nothing was evaluated, and there is no table.
        notes: lines (what, value) below the table, at least one.
    """
    console = Console(highlight=False)
    # Not the table's own title, which would be folded to the width of the figures.
    console.print(f"[italic]{markup(title)}[/italic]", soft_wrap=True)
    if found:
        console.print(_table(found))
    # Not in the table: a folded command cannot be copied.
    width = max(len(what) for what, _ in notes)
    for what, value in notes:
        console.print(f"{what:<{width}}  {markup(value)}", soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("top-1", f"[bold]{found['top1']:.2%}[/bold]")
    table.add_row("top-5", f"{found['top5']:.2%}")
    views = ", ".join(str(v) for v in found["views_per_video"])
    table.add_row("videos", f"{found['videos']}, {views} view(s) each")
    for entry in found["broken_videos"][:10]:
        table.add_row("broken, counted as wrong", markup(entry["error"]))
    if len(found["broken_videos"]) > 10:
        table.add_row("", f"and {len(found['broken_videos']) - 10} more, see results.json")
    if len(found["per_class"]) <= CLASSES_IN_TABLE:
        table.add_section()
        for name, entry in found["per_class"].items():
            share = "no videos" if entry["accuracy"] is None else f"{entry['accuracy']:.1%}"
            table.add_row(markup(name), f"{share}  ({entry['right']} of {entry['videos']})")
    if found["confused_pairs"]:
        table.add_section()
        for entry in found["confused_pairs"][:5]:
            pair = f"{markup(entry['class'])} → {markup(entry['taken_for'])}"
            table.add_row("confused", f"{pair}  ({entry['videos']})")
    return table


def shown(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
