"""A page about a run that needs nothing but a browser: OUTPUT/report.html.

    python -m dtf.report DIR...

train.py and eval.py write it at their end; this command makes it again from what is in the folder: curves (of
all parts of a resumed run), test results, confusions, classes, frames of right and wrong videos, temporal
filters, settings, and how to repeat the run. Everything is inside the one file. A run that is not finished
gets what there is so far.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from dtf.lit.command import one_line_errors
from dtf.lit.files import replacing
from dtf.text import cell

PAGE = "report.html"
VIDEOS_SHOWN = 6
"""Of the right ones, and of the wrong ones."""

FRAMES_SHOWN = 6
FRAME_PX = 112
CLASSES_SHOWN = 10
"""Best ones, and worst ones, where there are more than twice as many."""

POINTS_SHOWN = 400
BROKEN_SHOWN = 100

_STEPS, _TRAINING, _VALIDATION = "training, each step", "training", "validation"
Panel = tuple[str, list[tuple[str, str]], str]
PANELS: list[Panel] = [
    ("loss", [("train/loss", _STEPS), ("train/loss_epoch", _TRAINING), ("val/loss", _VALIDATION)], ""),
    ("top-1", [("train/top1", _TRAINING), ("val/top1", _VALIDATION)], "%"),
    ("top-5", [("train/top5", _TRAINING), ("val/top5", _VALIDATION)], "%"),
    ("learning rate", [("train/lr", "")], ""),
    ("gradient norm, before clipping", [("train/grad_norm", "")], ""),
    ("clips per second", [("train/clips_per_s", "")], ""),
    ("time spent waiting for data", [("train/data_wait", "")], "%"),
    ("GPU memory, GiB", [("train/gpu_memory_gib", "")], ""),
    ("memory of the process, GiB", [("train/memory_gib", "")], ""),
]  # fmt: skip
"""Title, curves with their labels, unit."""


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
        about: about.json.
        results: results.json.
        videos: scores.csv.
        filters: filters.json.
        curves: csv/version_*/metrics.csv.
        broken: broken_videos.txt, a line for each training video.
    """

    folder: Path
    config: dict[str, Any]
    about: dict[str, Any]
    results: dict[str, Any]
    videos: list[Video]
    filters: dict[str, list[float]]
    curves: dict[str, Curve]
    broken: list[str]


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write OUTPUT/report.html, whole or not at all.

    Args:
        folder: of a run of train.py or eval.py.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
        RunError: the page cannot be written.
    """
    run = read_run(Path(folder))
    path, text = run.folder / PAGE, page(run)
    with replacing(path) as file:
        file.write(text)
    return path


# ---- reading a run ---------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Everything in a run's folder that the page shows.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    if not (folder / "config.yaml").is_file() and not (folder / "results.json").is_file():
        raise ValueError(f"{folder} holds no run: no config.yaml, no results.json; give an output folder")
    broken = folder / "broken_videos.txt"
    return Run(
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        about=_read_json(folder / "about.json"),
        results=_read_json(folder / "results.json"),
        videos=_read_videos(folder / "scores.csv"),
        filters=_read_json(folder / "filters.json"),
        curves=read_curves(folder / "csv"),
        broken=broken.read_text("utf-8", "replace").splitlines() if broken.is_file() else [],
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    return {str(key): value for key, value in config.items()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no table of names")
    return content


def _read_videos(path: Path) -> list[Video]:
    if not path.is_file():
        return []
    videos = []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        head = next(rows, [])
        place = {name: i for i, name in enumerate(head)}
        try:
            columns = [place[name] for name in ("video", "class", "prediction", "error")]
            for row in rows:
                video, label, prediction, error = (row[i] for i in columns)
                score = float(row[place[f"score:{prediction}"]]) if prediction else 0.0
                videos.append(Video(video, label, prediction, score, error))
        except (KeyError, IndexError, ValueError) as error:
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
    parts = [p for p in folder.glob("version_*/metrics.csv") if re.fullmatch(r"version_\d+", p.parent.name)]
    # Metric -> (epoch, step, value), in order.
    points: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for path in sorted(parts, key=lambda p: int(p.parent.name.split("_")[1])):
        new: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    epoch, step = int(row["epoch"]), int(row["step"])
                    found = {k: float(v) for k, v in row.items() if k and v and k not in ("epoch", "step")}
                except (KeyError, TypeError, ValueError):
                    continue  # a line that was cut off with its run
                for name, value in found.items():
                    new[name].append((epoch, step, value))
        for name, added in new.items():
            points[name] = [p for p in points[name] if p[1] < added[0][1]] + added

    # Metrics of whole epochs stand once in an epoch, at its last step.
    ends = [(e, s) for name in ("train/loss_epoch", "train/top1") for e, s, _ in points.get(name, [])]
    per_epoch = max(((step + 1) / (epoch + 1) for epoch, step in ends), default=1.0)
    curves = {}
    for name, values in points.items():
        x = np.array([(step + 1) / per_epoch for _, step, _ in values])
        curves[name] = Curve(x, np.array([value for _, _, value in values]))
    return curves


# ---- the page --------------------------------------------------------------------------------------------


def page(run: Run) -> str:
    """The whole page as HTML, nothing of it elsewhere."""
    title = _title(run)
    sections = [
        ("Result", _result(run)),
        ("Curves", _curves(run)),
        ("Confusions", _confusions(run)),
        ("Classes", _classes(run)),
        ("Videos", _videos(run)),
        ("Temporal filters", _filters(run)),
        ("Videos that could not be read", _broken(run)),
        ("Parameters", _parameters(run)),
        ("How to repeat it", _repeat(run)),
    ]
    sections = [(name, body) for name, body in sections if body]
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in sections)
    body = "\n".join(f'<h2 id="{_anchor(name)}">{name}</h2>\n{body}' for name, body in sections)
    # No script and nothing from elsewhere, whatever a class is called.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<nav>{links}</nav>
{body}
</body>
</html>
"""


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1080px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin: 1.2em 0 0.4em; }
nav a { margin-right: 1em; color: #2a5a8a; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; }
th, td { padding: 0.15em 0.8em 0.15em 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; color: #555; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: 0.8em; margin: 1em 0; }
.card { border: 1px solid #ddd; border-radius: 6px; padding: 0.5em 1em; }
.card b { display: block; font-size: 1.5em; }
.card span { color: #555; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 0.5em; }
.two { display: flex; flex-wrap: wrap; gap: 2em; }
.bar { display: inline-block; width: 120px; height: 0.7em; background: #e6e6e6; }
.bar i { display: block; height: 100%; background: #4878a8; }
pre { background: #f5f5f5; padding: 0.8em; white-space: pre-wrap; overflow-wrap: anywhere; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 1em; }
.clip img { display: block; }
.clip small { color: #777; overflow-wrap: anywhere; }
.right b { color: #2a7a3a; }
.wrong b { color: #b03030; }
.note { color: #555; }
"""


def _title(run: Run) -> str:
    network = run.about.get("network") or run.results.get("network") or _at(run.config, "model", "name")
    data = _at(run.config, "data", "name")
    return " on ".join(str(part) for part in (network, data) if part) or run.folder.name


def _result(run: Run) -> str:
    found = run.results
    lines = [("network", run.about.get("network")), ("data", _at(run.config, "data", "root"))]
    lines += [(name, found.get(name)) for name in ("checkpoint", "views")]
    lines.append(("split", found.get("split_is")))
    lines.append(("folder", str(run.folder.resolve())))
    if "top1" not in found:
        note = (
            "Neither validated nor tested." if found else "This run is not finished: there is no result yet."
        )
        return f'<p class="note">{note}</p>{_pairs(lines)}'
    cards = [
        ("top-1", f"{found['top1']:.2%}"),
        ("top-5", f"{found['top5']:.2%}"),
        ("loss", "none" if found["loss"] is None else f"{found['loss']:.3f}"),
        (f"videos of {found.get('split', 'the split')}", f"{found['videos']:,}"),
        ("views of each", ", ".join(str(v) for v in found["views_per_video"])),
    ]
    if found["broken_videos"]:
        cards.append(("broken, counted as wrong", str(len(found["broken_videos"]))))
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime((run.folder / "results.json").stat().st_mtime))
    lines.append(("finished", written))
    boxes = "".join(
        f'<div class="card"><b>{_text(value)}</b><span>{_text(name)}</span></div>' for name, value in cards
    )
    refused = f"<p><b>Refused:</b> {_text(found['refused'])}</p>" if found.get("refused") else ""
    return f'{refused}<div class="cards">{boxes}</div>{_pairs(lines)}'


def _curves(run: Run) -> str:
    shown = {name for _, curves, _ in PANELS for name, _ in curves}
    # What other callbacks log; the test is a single point.
    others = [n for n in run.curves if n not in shown and not n.startswith("test/")]
    panels = [*PANELS, *((name, [(name, "")], "") for name in sorted(others))]
    pictures = []
    for title, curves, unit in panels:
        found = [(run.curves[name], label) for name, label in curves if name in run.curves]
        if found:
            pictures.append(_image(_draw_curves(title, found, unit), "svg+xml", title))
    return f'<div class="grid">{"".join(pictures)}</div>' if pictures else ""


def _draw_curves(title: str, curves: Sequence[tuple[Curve, str]], unit: str) -> bytes:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    from dtf.figures import drawable, new_figure
    from dtf.lit.pictures import to_svg

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


def _confusions(run: Run) -> str:
    from dtf.lit import pictures

    if "per_class" not in run.results:
        return ""
    names = list(run.results["per_class"])
    number = {cell(name): i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for video in run.videos:
        if video.label in number and video.prediction in number:
            matrix[number[video.label], number[video.prediction]] += 1
    parts = []
    chosen = pictures.most_confused(matrix)
    if len(chosen) < len(names):
        overview = pictures.confusion_overview(matrix, f"all {len(names)} classes")
        parts.append(_image(pictures.to_png(overview, 90), "png", "confusion matrix of all classes"))
        heading = f"the {len(chosen)} most confused of {len(names)} classes"
        figure = pictures.confusion_figure(matrix, names, heading, chosen)
        parts.append(_image(pictures.to_png(figure, 80), "png", heading))
    else:
        figure = pictures.confusion_figure(
            matrix, names, "videos of a class (row) and what they are taken for"
        )
        parts.append(_image(pictures.to_png(figure, 90), "png", "confusion matrix"))
    pairs = run.results["confused_pairs"]
    if pairs:
        rows = [(p["class"], p["taken_for"], p["videos"]) for p in pairs]
        parts.append("<h3>Most confused</h3>" + _table(("class", "taken for", "videos"), rows))
    return "".join(parts)


def _classes(run: Run) -> str:
    if "per_class" not in run.results:
        return ""
    found = [(name, entry) for name, entry in run.results["per_class"].items() if entry["videos"]]
    found.sort(key=lambda item: (-item[1]["accuracy"], item[0]))
    if not found:
        return ""

    def table(part: Iterable[tuple[str, dict[str, Any]]]) -> str:
        rows = "".join(
            f"<tr><td>{_text(name)}</td>"
            f'<td><span class="bar"><i style="width:{100 * entry["accuracy"]:.1f}%"></i></span></td>'
            f'<td class="n">{entry["accuracy"]:.1%}</td>'
            f'<td class="n">{entry["right"]} of {entry["videos"]}</td></tr>'
            for name, entry in part
        )
        return f"<table>{rows}</table>"

    if len(found) <= 2 * CLASSES_SHOWN:
        return table(found)
    best, worst = found[:CLASSES_SHOWN], found[: -CLASSES_SHOWN - 1 : -1]
    return (
        f'<div class="two"><div><h3>Best</h3>{table(best)}</div><div><h3>Worst</h3>{table(worst)}</div></div>'
        f"<details><summary>all {len(found)} classes</summary>{table(found)}</details>"
    )


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


def _videos(run: Run) -> str:
    read = _reader(run.config)
    parts = []
    for right, heading in ((False, "Wrong, the surest first"), (True, "Right, the surest first")):
        chosen = choose_videos(run.videos, right)
        if not chosen:
            continue
        parts.append(f'<h3>{heading}</h3><div class="clips">')
        for video in chosen:
            picture = read(video.path)
            kind = "right" if right else "wrong"
            said = f"taken for <b>{_text(video.prediction)}</b> ({video.score:.0%})"
            shown = (
                _image(picture, "jpeg", "frames of the video")
                if isinstance(picture, bytes)
                else f'<p class="note">{_text(picture)}</p>'
            )
            parts.append(
                f'<div class="clip {kind}">{shown}{_text(video.label)}, {said}<br>'
                f"<small>{_text(_below(video.path, _at(run.config, 'data', 'root')))}</small></div>"
            )
        parts.append("</div>")
    return "".join(parts)


def _reader(config: Mapping[str, Any]) -> Any:
    """A function from a path to the frames that the network sees there, as JPEG, or why there are none."""
    from PIL import Image

    from dtf.data.datamodule import VideoDataModule
    from dtf.data.dataset import EvalDataset
    from dtf.data.lists import VideoIndex
    from dtf.lit.pictures import strip
    from dtf.lit.stored import CLIP_KEYS

    settings = config.get("data") or {}
    keys = (*CLIP_KEYS, "max_read_seconds", "decoder")
    # Only a reader of frames, with plain values: a folder does not say what class to build.
    try:
        chosen = {key: settings[key] for key in keys if key in settings}
        data = VideoDataModule(root=os.sep, num_workers=0, **chosen)
    except (TypeError, ValueError) as error:
        reason = f"no frames: the settings of the data do not tell how to read them ({error})"
        return lambda path: reason

    def read(path: str) -> bytes | str:
        index = VideoIndex(os.sep, [os.path.abspath(path)], [0])
        sample = EvalDataset(
            index, data.frame_samplers["test"], data.val_transform, 1, data.max_read_seconds, data.decoder
        )[0]
        if sample["error"]:
            return f"no frames: {sample['error']}"
        file = io.BytesIO()
        picture = strip(sample["video"][0].numpy(), FRAMES_SHOWN, FRAME_PX)
        Image.fromarray(picture).save(file, format="JPEG", quality=80)
        return file.getvalue()

    return read


def _below(path: str, root: Any) -> str:
    """A path as seen from the data folder."""
    return path.removeprefix(f"{root}{os.sep}") if root else path


def _filters(run: Run) -> str:
    from dtf.lit.pictures import filters_figure, to_png

    if not run.filters:
        return ""
    picture = to_png(filters_figure(run.filters, "what each temporal layer adds, by temporal frequency"), 90)
    return (
        _image(picture, "png", "temporal filters")
        + '<p class="note">Measured on a few videos. Frequency 0 is what stands still; the last column is '
        "what changes sign from step to step. Amplitudes are in units of a block's features; a block that "
        "adds nothing is still the identity.</p>"
    )


def _broken(run: Run) -> str:
    tested = [f"{entry['error']}" for entry in run.results.get("broken_videos", [])]
    parts = []
    for heading, lines in (("Counted as wrong in the result", tested), ("Replaced in training", run.broken)):
        if lines:
            items = "".join(f"<li>{_text(line)}</li>" for line in lines[:BROKEN_SHOWN])
            more = f"<li>and {len(lines) - BROKEN_SHOWN} more</li>" if len(lines) > BROKEN_SHOWN else ""
            parts.append(f"<h3>{heading}: {len(lines)}</h3><ul>{items}{more}</ul>")
    return "".join(parts)


def _parameters(run: Run) -> str:
    groups = run.about.get("parameter_groups") or []
    total = run.about.get("parameters")
    text = f"<p>{total:,} parameters.</p>" if isinstance(total, int) else ""
    if groups:
        rows = [
            (g["name"], g["tensors"], f"{g['numbers']:,}", f"{g['lr']:.4g}", f"{g['weight_decay']:g}")
            for g in groups
        ]
        text += _table(("trained together", "tensors", "numbers", "learning rate", "weight decay"), rows)
    return text


def _repeat(run: Run) -> str:
    about, parts = run.about, []
    git = about.get("git")
    if about.get("command"):
        checkout = f"git checkout {git['commit']}\n" if git else ""
        parts.append(f"<pre>{_text(checkout + about['command'])}</pre>")
    if git and git["dirty"]:
        parts.append("<p>The code differed from that commit: it had changes that were not committed.</p>")
    lines = [("device", about.get("device")), ("precision", about.get("precision"))]
    lines += list(about.get("versions", {}).items())
    parts.append(_pairs(lines))
    if run.config:
        settings = OmegaConf.to_yaml(OmegaConf.create(run.config))
        parts.append(f"<details><summary>all settings</summary><pre>{_text(settings)}</pre></details>")
    return "".join(parts)


# ---- pieces of HTML --------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """What comes from files, as text: no markup, no control characters."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers to the right."""

    def align(value: Any) -> str:
        return ' class="n"' if re.fullmatch(r"[-+\d.,e%]+", str(value)) else ""

    def cells(kind: str, row: Sequence[Any]) -> str:
        return "".join(f"<{kind}{align(value)}>{_text(value)}</{kind}>" for value in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _pairs(lines: Iterable[tuple[str, Any]]) -> str:
    known = [(name, value) for name, value in lines if value is not None]
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in known)
    return f"<table>{rows}</table>"


def _image(content: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _at(mapping: Mapping[str, Any], *keys: str) -> Any:
    """A nested value, None where there is none."""
    for key in keys:
        if not isinstance(mapping, Mapping):
            return None
        mapping = mapping.get(key)  # type: ignore[assignment]
    return mapping


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        return 0 if arguments else 2
    with one_line_errors():
        for folder in arguments:
            print(write_report(folder))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
