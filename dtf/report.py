"""A page about a run that needs nothing but a browser: OUTPUT/report.html.

    python -m dtf.report DIR... [frames=true]

train.py and eval.py write it at their end; this command makes it again from what is in the folder: curves (of
all parts of a resumed run), test results, confusions, classes, right and wrong videos, temporal filters,
settings, and how to repeat the run. Everything is inside the one file. A run that is not finished
gets what there is so far.

The folder may come from anywhere: what leads out of it, is no plain data or is too large is refused in one
line, a section whose file holds other things than a run writes there is left out with a note, and no video
is read. frames=true, for a run of your own, shows frames of the videos below the data.root that it names.
"""

from __future__ import annotations

import base64
import csv
import functools
import io
import itertools
import logging
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from dtf.files import MOST_BYTES_YAML, open_regular, read_json, read_text, read_yaml, replacing
from dtf.runs.measure import Measure, measures
from dtf.runs.options import parse_options, run_command, yes_or_no
from dtf.text import cell, printable_lines

PAGE = "report.html"
VIDEOS_SHOWN = 6
"""Of the right ones, and of the wrong ones."""

FRAMES_SHOWN = 6
FRAME_PX = 112
CLASSES_SHOWN = 10
"""Best ones, and worst ones, where there are more than twice as many."""

POINTS_SHOWN = 400
BROKEN_SHOWN = 100
ROWS_SHOWN = 100
"""Of a table whose length a file decides."""

# A folder may come from anywhere. More than this is no run of ours, and is not read.
MOST_CSV_BYTES = 1 << 30
MOST_LINE_BYTES = 1 << 22
MOST_TEXT = 1 << 28
"""Letters of scores.csv that are kept, and numbers of metrics.csv, times 32."""
MOST_CLASSES = 4000
"""In a confusion matrix."""
MOST_LAYERS, MOST_KINDS, MOST_MAPS, MOST_PANELS = 200, 10, 64, 40
MOST_CLIP_BYTES = 1 << 29
MOST_PICTURE_BYTES = 1 << 24
TABLES_SHOWN = 20

log = logging.getLogger(__name__)
_NO_FRAMES = "no frames: frames=true shows those of a run of your own"
Block = dict[str, Any]
"""A piece of a section, shown by the macro of that name in report.html: plain data."""

_STEPS, _TRAINING, _VALIDATION = "training, each step", "training", "validation"
Panel = tuple[str, list[tuple[str, str]], str]
PANELS: list[Panel] = [
    ("loss", [("train/loss", _STEPS), ("train/loss_epoch", _TRAINING), ("val/loss", _VALIDATION)], ""),
    ("learning rate", [("train/lr", "")], ""),
    ("gradient norm, before clipping", [("train/grad_norm", "")], ""),
    ("clips per second", [("train/clips_per_s", "")], ""),
    ("time spent waiting for data", [("train/data_wait", "")], "%"),
    ("GPU memory, GiB", [("train/gpu_memory_gib", "")], ""),
    ("memory of the process, GiB", [("train/memory_gib", "")], ""),
]  # fmt: skip
"""Title, curves with their labels, unit; behind the first one come those of the task's measures."""


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


def write_report(folder: str | os.PathLike[str], frames: bool = True) -> Path:
    """Write OUTPUT/report.html, whole or not at all.

    Args:
        folder: of a run of train.py or eval.py.
        frames: show frames of videos below the data.root that the folder names.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
        RunError: the page cannot be written.
    """
    run = read_run(Path(folder))
    path, text = run.folder / PAGE, page(run, frames)
    with replacing(path) as file:
        file.write(text)
    return path


# ---- reading a run ---------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Everything in a run's folder that the page shows.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    config = _found(folder, "config.yaml")
    results = _found(folder, "results.json")
    if not config and not results:
        raise ValueError(f"{folder} holds no run: no config.yaml, no results.json; give an output folder")
    about, filters = _found(folder, "about.json"), _found(folder, "filters.json")
    scores, broken = _found(folder, "scores.csv"), _found(folder, "broken_videos.txt")
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


def _found(folder: Path, name: str) -> Path | None:
    """A file of the run's folder; None where there is none.

    Raises:
        ValueError: it leads out of the folder.
    """
    path = folder / name
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is damaged: it leads out of its folder")
    return path


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that may hold anything.

    Raises:
        ValueError: the file, one of its lines or all of them are too large.
    """
    with open_regular(path) as file:
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
        and _found(folder.parent, os.path.relpath(path, folder.parent))
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
                new[name].append((epoch, step, value if abs(value) < _LARGE else math.nan))
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


_FAR, _LARGE = 10**12, 1e30
"""Beyond these, steps and values are no numbers of a run, and nothing that an axis could show."""


# ---- the page --------------------------------------------------------------------------------------------


def page(run: Run, frames: bool = True) -> str:
    """The whole page as HTML, nothing of it elsewhere."""
    parts: list[tuple[str, Callable[[Run], list[Block]]]] = [
        ("Result", _result),
        ("Details", _details),
        ("Curves", _curves),
        ("Confusions", _confusions),
        ("Classes", _classes),
        ("Videos", functools.partial(_videos, frames=frames)),
        ("Temporal filters", _filters),
        ("Videos that could not be read", _broken),
        ("Parameters", _parameters),
        ("How to repeat it", _repeat),
    ]
    sections = []
    for name, build in parts:
        try:
            blocks = build(run)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # The files may be anyone's: one with other types than ours costs its section, not the page.
            reason = f"{type(error).__name__}: {error}"[:300]
            log.warning("%s: the section %s is left out: %s", run.folder, name, reason)
            blocks = [
                {"note": f"Left out: the run's files hold something else than a run writes ({reason})."}
            ]
        if blocks:
            sections.append({"name": name, "anchor": name.lower().replace(" ", "-"), "blocks": blocks})
    return _template().render(title=_title(run), sections=sections)


@functools.cache
def _template() -> Any:
    """The page's template. All that it shows is escaped, and made printable, whatever it is."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable_lines(str(value)),
    )
    return environment.get_template("report.html")


def _title(run: Run) -> str:
    network = run.about.get("network") or run.results.get("network") or _at(run.config, "model", "name")
    data = _at(run.config, "data", "name")
    return " on ".join(str(part) for part in (network, data) if part) or run.folder.name


def _result(run: Run) -> list[Block]:
    found = run.results
    lines = [("network", run.about.get("network")), ("data", _at(run.config, "data", "root"))]
    lines += [(name, found.get(name)) for name in ("checkpoint", "views")]
    lines.append(("split", found.get("split_is")))
    lines.append(("folder", str(run.folder.resolve())))
    known = _measures(run)
    if known[0].name not in found:
        note = (
            "Neither validated nor tested." if found else "This run is not finished: there is no result yet."
        )
        return [{"note": note}, _pairs(lines)]
    cards = [
        *((m.title, "none" if found[m.name] is None else m.format(found[m.name])) for m in known),
        (f"videos of {found.get('split', 'the split')}", f"{found['videos']:,}"),
    ]
    if "loss" in found:
        loss = found["loss"]
        cards.insert(len(known), ("loss", "none" if loss is None else f"{loss:.3f}"))
    if "views_per_video" in found:
        cards.append(("views of each", ", ".join(str(v) for v in found["views_per_video"][:ROWS_SHOWN])))
    if found["broken_videos"]:
        cards.append(("broken, counted as wrong", str(len(found["broken_videos"]))))
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime((run.folder / "results.json").stat().st_mtime))
    lines.append(("finished", written))
    refused = [{"note": f"Refused: {found['refused']}"}] if found.get("refused") else []
    return [*refused, {"cards": cards}, _pairs(lines)]


def _measures(run: Run) -> list[Measure]:
    """The measures of the run's task."""
    return measures(run.results.get("task") or run.about.get("task"))


def _details(run: Run) -> list[Block]:
    """The tables and pictures that a task shows, whatever it is."""
    blocks: list[Block] = []
    for table in run.results.get("tables", [])[:TABLES_SHOWN]:
        head, rows = [str(text) for text in table["head"]], table["rows"]
        shown = [[_entry(value) for value in row] for row in rows[:ROWS_SHOWN]]
        numeric = {i for i in range(len(head)) if all(isinstance(row[i], int | float) for row in rows)}
        blocks.append({"heading": str(table["title"]), "head": head, "rows": shown, "numeric": numeric})
        if len(rows) > ROWS_SHOWN:
            blocks.append({"note": f"and {len(rows) - ROWS_SHOWN} more"})
    for picture in run.results.get("pictures", [])[:TABLES_SHOWN]:
        name = str(picture["file"])
        path = _found(run.folder, name) if name == os.path.basename(name) else None
        if path is None:
            raise ValueError(f"the run's folder has no picture {name[:100]!r}")
        with open_regular(path) as file:
            content = file.read(MOST_PICTURE_BYTES + 1)
        if len(content) > MOST_PICTURE_BYTES or not content.startswith(b"\x89PNG\r\n"):
            raise ValueError(f"{path.name} is no picture, or one of more than {MOST_PICTURE_BYTES >> 20} MiB")
        blocks.append({"large": _image(content, "png", str(picture["alt"]))})
    return blocks


def _entry(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(run: Run) -> list[Block]:
    own = [
        (m.title, [(f"train/{m.name}", _TRAINING), (f"val/{m.name}", _VALIDATION)], "%" if m.share else "")
        for m in _measures(run)
    ]
    known: list[Panel] = [PANELS[0], *own, *PANELS[1:]]
    shown = {name for _, curves, _ in known for name, _ in curves}
    # What other callbacks log; the test is a single point.
    others = sorted(n for n in run.curves if n not in shown and not n.startswith("test/"))
    panels = [*known, *((name, [(name, "")], "") for name in others[:MOST_PANELS])]
    pictures = []
    for title, curves, unit in panels:
        found = [(run.curves[name], label) for name, label in curves if name in run.curves]
        if found:
            pictures.append(
                _image(_draw_curves(title, found, unit), "svg+xml", _say_curves(title, found, unit))
            )
    blocks: list[Block] = [{"small": pictures}] if pictures else []
    if len(others) > MOST_PANELS:
        blocks.append({"note": f"and {len(others) - MOST_PANELS} more that are not shown"})
    return blocks


def _say_curves(title: str, curves: Sequence[tuple[Curve, str]], unit: str) -> str:
    """A panel in words: where each curve begins and ends, and its range."""
    form = ".1%" if unit == "%" else ".4g"
    parts = []
    for curve, label in curves:
        y = curve.y[np.isfinite(curve.y)]
        if not len(y):
            parts.append(f"{label}: no finite value")
            continue
        first, last, low, high = (format(float(v), form) for v in (y[0], y[-1], y.min(), y.max()))
        parts.append(f"{label + ': ' if label else ''}from {first} to {last}, between {low} and {high}")
    return f"Curve of {title}, up to epoch {max(c.x[-1] for c, _ in curves):.4g}: {'; '.join(parts)}."


def _draw_curves(title: str, curves: Sequence[tuple[Curve, str]], unit: str) -> bytes:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    from dtf.view.figures import drawable, new_figure
    from dtf.view.pictures import to_svg

    figure = new_figure(4.2, 2.7)
    axes = figure.add_axes((0.15, 0.17, 0.82, 0.7))
    # What is logged at each step goes behind, and pale.
    colours = ("#9bb7d3", "#4878a8", "#d1712b") if len(curves) > 2 else ("#4878a8", "#d1712b")
    for (curve, label), colour in zip(curves, colours, strict=False):
        x, y = thin(curve.x, curve.y)
        few = len(x) <= 30
        axes.plot(x, y, color=colour, label=label, linewidth=1.4, marker="o" if few else None, markersize=3)
    axes.set_title(drawable(title), fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.grid(color="#eee")
    if unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(label for _, label in curves):
        axes.legend(fontsize=8, frameon=False)
    return to_svg(figure)


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS_SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """A curve with no more than so many points, each the mean of its neighbours."""
    if len(x) <= points:
        return x, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _confusions(run: Run) -> list[Block]:
    from dtf.view import pictures

    if "per_class" not in run.results:
        return []
    names = list(run.results["per_class"])
    pairs = [(p["class"], p["taken_for"], p["videos"]) for p in run.results["confused_pairs"][:ROWS_SHOWN]]
    table: Block = {}
    if pairs:
        head = ("class", "taken for", "videos")
        table = {"heading": "Most confused", "head": head, "rows": pairs, "numeric": {2}}
    if len(names) > MOST_CLASSES:
        return [{"note": f"No matrix: {len(names)} classes are too many for a picture."}, table]
    number = {cell(name): i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for video in run.videos:
        if video.label in number and video.prediction in number:
            matrix[number[video.label], number[video.prediction]] += 1
    if not matrix.any():
        return [{"note": "No matrix: scores.csv has no video of these classes."}, table]
    right = f"{np.trace(matrix)} of {matrix.sum()} videos are right"
    worst = "; ".join(f"{a} taken for {b}: {n}" for a, b, n in pairs[:3])
    alt = f"Confusion matrix of {len(names)} classes: {right}" + (
        f"; most confused: {worst}." if worst else "."
    )
    chosen = pictures.most_confused(matrix)
    if len(chosen) == len(names):
        heading = "videos of a class (row) and what they are taken for"
        figure = pictures.confusion_figure(matrix, names, heading)
        return [{"beside": [{"large": _image(pictures.to_png(figure, 90), "png", alt)}, table]}]
    overview = pictures.confusion_overview(matrix, f"all {len(names)} classes")
    whole: Block = {"large": _image(pictures.to_png(overview, 90), "png", alt)}
    heading = f"the {len(chosen)} most confused of {len(names)} classes"
    figure = pictures.confusion_figure(matrix, names, heading, chosen)
    alt = f"Confusion matrix of {heading}" + (f"; most confused: {worst}." if worst else ".")
    return [{"beside": [whole, table]}, {"large": _image(pictures.to_png(figure, 80), "png", alt)}]


def _classes(run: Run) -> list[Block]:
    entries = run.results["per_class"].items() if "per_class" in run.results else []
    found = [
        (name, float(entry["accuracy"]), f"{entry['right']} of {entry['videos']}")
        for name, entry in entries
        if entry["videos"]
    ]
    if not all(0 <= accuracy <= 1 for _, accuracy, _ in found):
        raise ValueError("an accuracy that is no share")
    found.sort(key=lambda item: (-item[1], item[0]))
    if len(found) <= 2 * CLASSES_SHOWN:
        return [{"bars": found}] if found else []
    best, worst = found[:CLASSES_SHOWN], found[: -CLASSES_SHOWN - 1 : -1]
    return [
        {"beside": [{"heading": "Best", "bars": best}, {"heading": "Worst", "bars": worst}]},
        {"summary": f"all {len(found)} classes", "details": {"bars": found}},
    ]


# ---- videos ----------------------------------------------------------------------------------------------


def choose_videos(videos: Sequence[Video], right: bool) -> list[Video]:
    """A few right or wrong videos, the surest of each class first."""
    found = sorted(
        (v for v in videos if v.prediction and (v.prediction == v.label) == right),
        key=lambda v: (-v.score, v.path),
    )
    seen: dict[str, int] = defaultdict(int)
    ranked = []
    for video in found:
        ranked.append((seen[video.label], video))
        seen[video.label] += 1
    # One of each class before the second one of any.
    return [video for _, video in sorted(ranked, key=lambda item: item[0])[:VIDEOS_SHOWN]]


def _videos(run: Run, frames: bool) -> list[Block]:
    read = _reader(run.config) if frames else lambda path: _NO_FRAMES
    root = _at(run.config, "data", "root")
    names = {cell(name): name for name in run.results.get("per_class", {})}
    blocks: list[Block] = []
    for right, heading in ((False, "Wrong, the surest first"), (True, "Right, the surest first")):
        clips = []
        for video in choose_videos(run.videos, right):
            picture = read(video.path)
            label, prediction = (names.get(name, name) for name in (video.label, video.prediction))
            path = _below(video.path, root)
            clip: Block = {"kind": "right" if right else "wrong", "label": label, "prediction": prediction}
            clip |= {"score": f"{video.score:.0%}", "path": path}
            if isinstance(picture, bytes):
                alt = f"Frames of {path}: {label}, taken for {prediction} ({video.score:.0%})."
                clip["image"] = _image(picture, "jpeg", alt, "frames")
            else:
                clip["reason"] = picture
            clips.append(clip)
        if clips:
            blocks.append({"heading": heading, "clips": clips})
    return blocks


def _reader(config: Mapping[str, Any]) -> Callable[[str], bytes | str]:
    """A function from a path to the frames that the network sees there, as JPEG, or why there are none.

    Only below data.root: what scores.csv names may lie anywhere.
    """
    from PIL import Image

    from dtf.data.clip_view import CLIP_KEYS, ClipView
    from dtf.data.dataset import EvalDataset
    from dtf.data.lists import VideoIndex
    from dtf.view.pictures import strip

    settings = config.get("data") or {}
    root = _at(config, "data", "root")
    # Only a view of clips, with plain values: a folder does not say what class to build.
    try:
        view = ClipView.from_settings(
            ClipView().settings() | {k: settings[k] for k in CLIP_KEYS if k in settings}
        )
        limit, decoder = settings.get("max_read_seconds", 60.0), settings.get("decoder", "pyav")
        if limit is not None and not 0 < (limit := float(limit)) < math.inf:
            raise ValueError(f"max_read_seconds={limit}")
        if 3 * view.clip_length * view.crop_px**2 > MOST_CLIP_BYTES:
            raise ValueError(f"clips of more than {MOST_CLIP_BYTES >> 20} MiB")
    except (TypeError, ValueError) as error:
        reason = f"no frames: the settings of the data do not tell how to read them ({error})"
        return lambda path: reason

    def read(path: str) -> bytes | str:
        if not _lies_below(path, root):
            return f"no frames: the video does not lie below data.root={root}, as seen from here"
        index = VideoIndex(os.sep, [os.path.abspath(path)], [0])
        sample = EvalDataset(index, view.sampler(), view.crops(), 1, limit, decoder)[0]
        if sample["error"]:
            return f"no frames: {sample['error'][0]}"
        file = io.BytesIO()
        picture = strip(sample["video"][0].numpy(), FRAMES_SHOWN, FRAME_PX)
        Image.fromarray(picture).save(file, format="JPEG", quality=80)
        return file.getvalue()

    return read


def _below(path: str, root: Any) -> str:
    """A path as seen from the data folder; as it is where it lies elsewhere."""
    return os.path.relpath(path, root) if _lies_below(path, root) else path


def _lies_below(path: str, root: Any) -> bool:
    # As the paths are written: links below the data folder are its owner's decision.
    return isinstance(root, str) and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def _filters(run: Run) -> list[Block]:
    from dtf.view.pictures import filters_figure, layers_by_map, to_png

    found = layers_by_map(run.filters)
    rows = [row for layers in found.values() for row in layers.values()]
    few = len(found) <= MOST_KINDS and len(rows) <= MOST_LAYERS
    if not few or not all(1 <= len(row) <= MOST_MAPS for row in rows):
        raise ValueError("filters.json has more than the layers of a network")
    if not all(0 <= energy < _LARGE for row in rows for energy in row.values()):
        raise ValueError("filters.json has an energy that is none")
    blocks: list[Block] = []
    for over, layers in found.items():
        picture = to_png(filters_figure(layers, over, f"what each temporal layer adds, over {over}"), 90)
        energy = {name: sum(row.values()) for name, row in layers.items()}
        most = max(energy, key=lambda name: energy[name])
        alt = (
            f"Temporal filters of {len(layers)} blocks: share of the energy that each adds over {over}, and "
            f"its amplitude, the largest {math.sqrt(energy[most]):.3g} in {most}."
        )
        blocks.append({"large": _image(picture, "png", alt)})
    note = (
        "Measured on a few videos. Amplitudes are in units of a block's features; a block that adds nothing "
        "is still the identity."
    )
    return [*blocks, {"note": note}] if blocks else []


def _broken(run: Run) -> list[Block]:
    tested = [str(entry["error"]) for entry in run.results.get("broken_videos", [])]
    blocks: list[Block] = []
    for heading, lines in (("Counted as wrong in the result", tested), ("Replaced in training", run.broken)):
        if lines:
            more = [f"and {len(lines) - BROKEN_SHOWN} more"] if len(lines) > BROKEN_SHOWN else []
            blocks.append({"heading": f"{heading}: {len(lines)}", "lines": lines[:BROKEN_SHOWN] + more})
    return blocks


def _parameters(run: Run) -> list[Block]:
    total = run.about.get("parameters")
    blocks: list[Block] = [{"note": f"{total:,} parameters."}] if isinstance(total, int) else []
    rows = [
        (g["name"], g["tensors"], f"{g['numbers']:,}", f"{g['lr']:.4g}", f"{g['weight_decay']:g}")
        for g in (run.about.get("parameter_groups") or [])[:ROWS_SHOWN]
    ]
    if rows:
        head = ("trained together", "tensors", "numbers", "learning rate", "weight decay")
        blocks.append({"head": head, "rows": rows, "numeric": {1, 2, 3, 4}})
    return blocks


def _repeat(run: Run) -> list[Block]:
    about = run.about
    blocks: list[Block] = []
    git = about.get("git")
    if about.get("command"):
        checkout = f"git checkout {git['commit']}\n" if git else ""
        blocks.append({"code": f"{checkout}{about['command']}"})
    if git and git["dirty"]:
        blocks.append({"note": "The code differed from that commit: it had changes that were not committed."})
    lines = [("device", about.get("device")), ("precision", about.get("precision"))]
    lines += list(about.get("versions", {}).items())[:ROWS_SHOWN]
    blocks.append(_pairs(lines))
    if run.settings:
        blocks.append({"summary": "all settings", "details": {"code": run.settings}})
    return blocks


# ---- pieces of a section -----------------------------------------------------------------------------------


def _pairs(lines: Iterable[tuple[str, Any]]) -> Block:
    return {"pairs": [(name, value) for name, value in lines if value is not None]}


def _image(content: bytes, kind: str, alt: str, use: str = "drawn") -> dict[str, Any]:
    """A picture for the template; `use`: "drawn" on paper, which dark mode turns dark, or "frames"."""
    return {"kind": kind, "base64": base64.b64encode(content).decode(), "alt": alt[:1000], "use": use}


def _at(mapping: Mapping[str, Any], *keys: str) -> Any:
    """A nested value, None where there is none."""
    for key in keys:
        if not isinstance(mapping, Mapping):
            return None
        mapping = mapping.get(key)  # type: ignore[assignment]
    return mapping


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    folders, options = parse_options(arguments, {"frames": "false"})
    for folder in folders:
        print(write_report(folder, yes_or_no(options, "frames")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
