"""What a run's folder holds: results, scores, curves and settings, as a page about the run shows them.

The folder may come from anywhere: what leads out of it, is no plain data or is too large is refused in one
line.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtf.files import MOST_BYTES_YAML, open_sound, read_json, read_text, read_yaml
from dtf.runs.folder import file_of
from dtf.runs.measure import Measure, measures

# More than this is no run of ours, and is not read.
MOST_CSV_BYTES = 1 << 30
MOST_LINE_BYTES = 1 << 22
MOST_TEXT = 1 << 28
"""Letters of scores.csv that are kept, and numbers of metrics.csv, times 32."""
MOST_PICTURE_BYTES = 1 << 24
LARGE = 1e30
"""Beyond it, values are no numbers of a run, and nothing that an axis could show."""
_FAR = 10**12  # the same of steps


@dataclass(frozen=True)
class Curve:
    """Values of one metric.

    Attributes:
        x: epochs, fractions for what is logged at each step; steps where no epoch was finished.
        y: the values.
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Video:
    """A row of scores.csv.

    Attributes:
        path: of the file.
        label, prediction: class names; "" for the prediction where the video is broken.
        score: of the prediction, 0..1.
        error: why it could not be read, or "".
    """

    path: str
    label: str
    prediction: str
    score: float
    error: str


@dataclass(frozen=True)
class Run:
    """What a run's folder holds; empty where it has no such file.

    Attributes:
        folder: of the run.
        config: config.yaml.
        settings: its text.
        about: about.json.
        results: results.json.
        videos: scores.csv.
        filters: filters.json.
        curves: csv/version_*/metrics.csv.
        broken: broken_videos.txt, a line for each training video.
    """

    folder: Path
    config: dict[str, Any]
    settings: str
    about: dict[str, Any]
    results: dict[str, Any]
    videos: list[Video]
    filters: dict[str, Any]
    curves: dict[str, Curve]
    broken: list[str]

    @property
    def measures(self) -> list[Measure]:
        """The measures of its task.

        Raises:
            ValueError: its task tells something else than a run writes.
        """
        return measures(self.results.get("task") or self.about.get("task"))

    def picture(self, name: str) -> bytes:
        """A PNG file that its task has left in the folder.

        Raises:
            ValueError: there is none of that name, or it is something else.
        """
        path = file_of(self.folder, name) if name == os.path.basename(name) else None
        if path is None:
            raise ValueError(f"the run's folder has no picture {name[:100]!r}")
        with open_sound(path) as file:
            content = file.read(MOST_PICTURE_BYTES + 1)
        if len(content) > MOST_PICTURE_BYTES or not content.startswith(b"\x89PNG\r\n"):
            raise ValueError(f"{path.name} is no picture, or one of more than {MOST_PICTURE_BYTES >> 20} MiB")
        return content


def read_run(folder: Path) -> Run:
    """Everything in a run's folder that the page shows.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    config = file_of(folder, "config.yaml")
    results = file_of(folder, "results.json")
    if not config and not results:
        raise ValueError(f"{folder} holds no run: no config.yaml, no results.json; give an output folder")
    about, filters = file_of(folder, "about.json"), file_of(folder, "filters.json")
    scores, broken = file_of(folder, "scores.csv"), file_of(folder, "broken_videos.txt")
    settings = read_yaml(config) if config else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{config} is damaged: it holds no settings")
    return Run(
        folder=folder,
        config={str(key): value for key, value in settings.items()},
        settings=read_text(config, MOST_BYTES_YAML) if config else "",
        about=read_json(about) if about else {},
        results=read_json(results) if results else {},
        videos=_read_videos(scores) if scores else [],
        filters=read_json(filters) if filters else {},
        curves=read_curves(folder / "csv"),
        broken=[line.rstrip("\n")[:1000] for line in itertools.islice(_lines(broken), 100_000)]
        if broken
        else [],
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that may hold anything.

    Raises:
        ValueError: the file, one of its lines or all of them are too large.
    """
    with open_sound(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_CSV_BYTES:
            raise ValueError(f"{path} is damaged: it has more than {MOST_CSV_BYTES >> 20} MiB")
        while line := file.readline(MOST_LINE_BYTES):
            if len(line) == MOST_LINE_BYTES:
                raise ValueError(f"{path} is damaged: a line has more than {MOST_LINE_BYTES >> 20} MiB")
            yield line.decode("utf-8", "backslashreplace")


def _read_videos(path: Path) -> list[Video]:
    videos, room = [], MOST_TEXT
    rows = csv.reader(_lines(path))
    try:
        head = next(rows, [])
        place = {name: i for i, name in enumerate(head)}
        columns = [place[name] for name in ("video", "class", "prediction", "error")]
        for row in rows:
            video, label, prediction, error = (row[i] for i in columns)
            score = float(row[place[f"score:{prediction}"]]) if prediction else 0.0
            if not 0 <= score <= 1:
                raise ValueError(f"a score of {score}")
            videos.append(Video(video, label, prediction, score, error))
            # An object of Python has a size of its own.
            room -= 256 + len(video) + len(label) + len(prediction) + len(error)
            if room < 0:
                raise ValueError("more text than a run writes")
    except (KeyError, IndexError, ValueError, csv.Error) as error:
        if str(error).startswith(f"{path} "):
            raise
        raise ValueError(f"{path} is damaged: line {rows.line_num} ({error})") from None
    return videos


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves of a run from all of its parts: a resumed run writes version_1 and so on.

    A part that was cut off may have gone beyond its last checkpoint; what the next part did again counts.

    Args:
        folder: OUTPUT/csv.

    Returns:
        Metric -> curve.
    """
    parts = [
        path
        for path in folder.glob("version_*/metrics.csv")
        if re.fullmatch(r"version_\d{1,6}", path.parent.name, re.ASCII)
        and file_of(folder.parent, os.path.relpath(path, folder.parent))
    ]
    room = MOST_TEXT // 32
    # Metric -> (epoch, step, value), in order.
    points: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for path in sorted(parts, key=lambda p: int(p.parent.name.split("_")[1])):
        new: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        for row in _rows(path):
            try:
                epoch, step = int(row["epoch"]), int(row["step"])
                found = {k: float(v) for k, v in row.items() if k and v and k not in ("epoch", "step")}
            except (KeyError, TypeError, ValueError):
                continue  # a line that was cut off with its run
            if not (0 <= epoch < _FAR and 0 <= step < _FAR):
                continue
            room -= len(found)
            if room < 0:
                raise ValueError(f"{path} is damaged: it holds more numbers than a run writes")
            for name, value in found.items():
                new[name].append((epoch, step, value if abs(value) < LARGE else math.nan))
        for name, added in new.items():
            points[name] = [p for p in points[name] if p[1] < added[0][1]] + added

    # Metrics of whole epochs stand once in an epoch, at its last step.
    ends = [(e, s) for e, s, _ in points.get("train/loss_epoch", [])]
    per_epoch = max(((step + 1) / (epoch + 1) for epoch, step in ends), default=1.0)
    curves = {}
    for name, values in points.items():
        x = np.array([(step + 1) / per_epoch for _, step, _ in values])
        curves[name] = Curve(x, np.array([value for _, _, value in values]))
    return curves


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from csv.DictReader(_lines(path))
    except csv.Error as error:
        raise ValueError(f"{path} is damaged: {error}") from None
