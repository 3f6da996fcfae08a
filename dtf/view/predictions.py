"""What `predict` leaves of a video and shows of it: a record, files, a table."""

from __future__ import annotations

import csv
import sys
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dtf.data.isolated import IsolatedReader
from dtf.text import cell, markup, printable
from dtf.view.annotate import clock, draw_prediction, draw_timeline, write_annotated

if TYPE_CHECKING:
    from dtf.apply.predictor import Prediction, Predictor
    from dtf.apply.sliding import Window


def record_of(prediction: Prediction) -> dict[str, Any]:
    """The entry of predictions.json."""
    return {
        "video": printable(prediction.video),
        "error": printable(prediction.error) or None,
        "predictions": [
            {"class": name, "score": score}
            for name, score in zip(prediction.classes, prediction.scores, strict=True)
        ],
    }


def write_files(
    folder: Path,
    stem: str,
    prediction: Prediction,
    about: dict[str, Any],
    class_names: Sequence[str],
    progress: Progress,
    *,
    top: int,
    picture: bool,
    video: bool,
    max_read_seconds: float | None,
) -> None:
    """Timeline, and where they are wanted picture and annotated video.

    Args:
        folder: to write to.
        stem: of the files' names.
        prediction: of a sound video.
        about: the entry of predictions.json, which gets each file that is there.
        class_names: C names.
        progress: shows how far the annotated video is.
        top: classes of each window.
        picture, video: whether to write them.
        max_read_seconds: time limit for reading the video; None: none.

    Raises:
        VideoError: the annotated video cannot be written.
    """
    overall = list(zip(prediction.classes, prediction.scores, strict=True))
    windows, scores = prediction.windows, prediction.window_scores
    assert prediction.frames is not None
    if scores is not None:
        best = [_best(row, class_names, top) for row in scores]
        about["timeline"] = f"{stem}.timeline.csv"
        about["windows"] = _write_timeline(folder / about["timeline"], windows, best)
    if picture:
        about["picture"] = f"{stem}.png"
        path = folder / about["picture"]
        if scores is None:
            draw_prediction(path, prediction.video, prediction.frames, overall)
        else:
            draw_timeline(path, prediction.video, windows, scores, class_names, prediction.frames, top)
    if video:
        centres = [window.centre for window in windows]

        def caption_at(seconds: float) -> list[tuple[str, float]]:
            return best[_nearest(centres, seconds)] if centres else overall

        reader = IsolatedReader(prediction.video, max_read_seconds)
        task = progress.add_task("annotated video", total=reader.num_frames)
        copy = f"{stem}.annotated.mp4"
        try:
            write_annotated(folder / copy, reader, caption_at, lambda: progress.advance(task))
        finally:
            progress.remove_task(task)
        about["annotated"] = copy


def _write_timeline(
    path: Path, windows: Sequence[Window], best: Sequence[list[tuple[str, float]]]
) -> list[dict[str, Any]]:
    """Write the best classes of every window as CSV; returns the same for predictions.json."""
    with open_csv(path) as file:
        rows = csv.writer(file)
        rows.writerow(["start", "end", "class", "score"])
        for window, caption in zip(windows, best, strict=True):
            for name, score in caption:
                rows.writerow([f"{window.start:.3f}", f"{window.end:.3f}", cell(name), f"{score:.6f}"])
    return [
        {
            "start": round(window.start, 3),
            "end": round(window.end, 3),
            "predictions": [{"class": name, "score": score} for name, score in caption],
        }
        for window, caption in zip(windows, best, strict=True)
    ]


def open_csv(path: Path) -> Any:
    """A new CSV file, open."""
    return open(path, "w", encoding="utf-8", newline="")


def _best(scores: np.ndarray, class_names: Sequence[str], top: int) -> list[tuple[str, float]]:
    order = (-scores).argsort(kind="stable")[:top]
    return [(class_names[i], float(scores[i])) for i in order.tolist()]


def _nearest(sorted_values: list[float], value: float) -> int:
    place = bisect(sorted_values, value)
    if place in (0, len(sorted_values)):
        return min(place, len(sorted_values) - 1)
    return place if sorted_values[place] - value < value - sorted_values[place - 1] else place - 1


def show(
    console: Console, folder: Path, predictor: Predictor, prediction: Prediction, record: dict[str, Any]
) -> None:
    """Print what was found in a sound video, and the files in `folder` that its record names."""
    console.print(f"[bold]{markup(record['video'])}[/bold]", soft_wrap=True)
    table = Table(show_header=False)
    for name, score in zip(prediction.classes, prediction.scores, strict=True):
        bar = "█" * round(20 * score) if predictor.shares else ""
        table.add_row(markup(name), f"{predictor.shown(score):>6}", bar)
    console.print(table)
    if prediction.windows:
        end = clock(prediction.windows[-1].end)
        console.print(f"mean of {len(prediction.windows)} windows from 0 to {end}")
    for key in ("picture", "timeline", "annotated"):
        if key in record:
            console.print(f"{key}: {markup(folder / record[key])}", soft_wrap=True)


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Bars on a terminal, nothing elsewhere."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stderr=sys.stderr.isatty(),
    ) as progress:
        yield progress
