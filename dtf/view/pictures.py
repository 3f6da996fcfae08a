"""Pictures of a run, for dashboards and the report: confusions, curves, temporal filters, clips.

Letters: C classes, T frames, S pixels.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtf.view.figures import columns, drawable, new_figure, save, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES_SHOWN = 40
"""Classes whose names and numbers fit into a confusion matrix."""

NAME_SHOWN = 40
"""Signs of a name that a picture shows."""

LABEL_SHOWN = 24
"""Signs of a map's label."""

MOST_CONFUSED = 25
"""Classes that stand for a larger matrix, so that they can be read on a screen."""


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    save(figure, file, dpi=dpi)
    return file.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file."""
    file = io.BytesIO()
    save(figure, file, "svg")
    return file.getvalue()


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as (H, W, 3) uint8."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(to_png(figure, dpi))).convert("RGB"))


def most_confused(confusion: np.ndarray, limit: int = MOST_CONFUSED) -> np.ndarray:
    """The classes with the most confusions, in ascending order: what to show of a matrix that is too large.

    Args:
        confusion: (C, C) counts; with no more than `CLASSES_SHOWN` classes, all are taken.
        limit: how many to take otherwise.
    """
    if len(confusion) <= CLASSES_SHOWN:
        return np.arange(len(confusion))
    # In pairs, the strongest first: a class alone, without what it is taken for, would show nothing.
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    chosen: dict[int, None] = {}
    for place in np.argsort(-wrong, axis=None, kind="stable"):
        pair = [int(c) for c in divmod(int(place), len(wrong)) if int(c) not in chosen]
        if len(chosen) + len(pair) > limit:
            break
        chosen.update(dict.fromkeys(pair))
    return np.sort(np.fromiter(chosen, dtype=np.int64))


def confusion_figure(
    confusion: np.ndarray, class_names: Sequence[str], title: str, classes: np.ndarray | None = None
) -> Figure:
    """A matrix of counts with its names, rows normalised to shares of the class.

    Args:
        confusion: (C, C) videos of class (row) that were taken for class (column).
        class_names: C names.
        title: above it.
        classes: numbers of the classes to show; None: all. Shares stay those of the whole class.
    """
    from matplotlib.colors import PowerNorm

    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    if classes is not None:
        share, confusion = (matrix[np.ix_(classes, classes)] for matrix in (share, confusion))
        class_names = [class_names[c] for c in classes]
    num_classes = len(class_names)
    few = num_classes <= CLASSES_SHOWN
    font = 9 if few else 6
    names = [drawable(name, NAME_SHOWN) for name in class_names]

    # Inches. Set by hand: an automatic layout measures every label several times, 25 s for 400 classes.
    side = num_classes * (0.45 if few else 0.11) + (0.3 if few else 0)
    labels = 0.5 + max(map(columns, names)) * font * 0.62 / 72
    top, right = 0.4, 1.2
    width, height = labels + side + right, labels + side + top
    figure = new_figure(width, height)
    axes = figure.add_axes((labels / width, labels / height, side / width, side / height))
    # A rare confusion (2 % of a class) must show among hundreds of classes: spread the low colours.
    norm = PowerNorm(1.0 if few else 0.4, 0, 1)
    image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(num_classes), names, fontsize=font, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("class")
    axes.set_title(drawable(title), parse_math=False)
    if few:
        for a, b in np.argwhere(confusion > 0):
            colour = "white" if share[a, b] > 0.5 else "black"
            axes.text(b, a, str(confusion[a, b]), ha="center", va="center", color=colour, fontsize=font)
    bar = figure.add_axes(((labels + side + 0.15) / width, labels / height, 0.2 / width, side / height))
    figure.colorbar(image, cax=bar, label="share of the class")
    return figure


def confusion_overview(confusion: np.ndarray, title: str) -> Figure:
    """A large matrix without names: is it a diagonal, are there blocks and stripes?"""
    from matplotlib.colors import PowerNorm

    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    figure = new_figure(6.6, 6)
    axes = figure.add_axes((0.1, 0.09, 0.76, 0.84))
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="nearest")
    axes.set_xlabel("prediction (class number)")
    axes.set_ylabel("class (number)")
    axes.set_title(drawable(title), parse_math=False)
    figure.colorbar(image, cax=figure.add_axes((0.88, 0.09, 0.03, 0.84)), label="share of the class")
    return figure


def layers_by_map(filters: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """What filters.json says, by what maps are told apart by: {over: {layer: {label of a map: energy}}}.

    Files of before there was more than one family have lists: energies by cycles per clip.

    Raises:
        TypeError, KeyError, AttributeError, ValueError: It is no such file.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, entry in filters.items():
        if isinstance(entry, list):
            labels = (f"{cycles} per clip" for cycles in range(len(entry)))
            entry = {"over": "frequencies", "energies": dict(zip(labels, entry, strict=True))}
        energies = {str(label): float(energy) for label, energy in entry["energies"].items()}
        found.setdefault(str(entry["over"]), {})[name] = energies
    return found


def filters_figure(energies: Mapping[str, Mapping[str, float]], over: str, title: str) -> Figure:
    """What temporal layers did, by their maps, and how much.

    Left, each row sums to 100 %: how the energy of a layer is spread over its maps (of DTF, over temporal
    frequencies). Right: its amplitude, in units of its features; a layer that is still the identity adds
    nothing.

    Args:
        energies: layer -> label of each map -> energy, `dtf.models.layer_maps` averaged over clips and
            pixels.
        over: what the maps are told apart by.
        title: above it.
    """
    # Without what all names share.
    names = [drawable(name.removeprefix("backbone."), NAME_SHOWN) for name in energies]
    num_columns = max(len(row) for row in energies.values())
    share = np.full((len(names), num_columns), np.nan)
    amplitude = np.zeros(len(names))
    longest = max(energies.values(), key=len)
    # A word a line: columns are narrow.
    labels = [drawable(label, LABEL_SHOWN).replace(" ", "\n") for label in longest]
    lines = max(label.count("\n") + 1 for label in labels)
    for i, row in enumerate(energies.values()):
        energy = np.array(list(row.values()), dtype=float)
        amplitude[i] = math.sqrt(energy.sum())
        if energy.sum() > 0:
            share[i, : len(row)] = 100 * energy / energy.sum()

    row_inches, names_inches, foot_inches = 0.3, 0.5 + max(map(columns, names)) * 0.085, 0.45 + 0.15 * lines
    width = names_inches + max(3.0, 0.62 * num_columns) + 2.4
    height = 0.6 + foot_inches + row_inches * len(names)
    figure = new_figure(width, height)
    bottom, tall = foot_inches / height, row_inches * len(names) / height
    left = names_inches / width
    middle = 1 - 2.2 / width - left
    axes = figure.add_axes((left, bottom, middle, tall))
    axes.imshow(share, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    axes.set_xticks(range(num_columns), labels, fontsize=8, parse_math=False)
    axes.set_xlabel(drawable(over, NAME_SHOWN), parse_math=False)
    axes.set_title("share of the energy, %", loc="left", fontsize=9, color="#555")
    figure.text(left, 1 - 0.12 / height, drawable(title), fontsize=10, va="top", parse_math=False)
    for i, j in np.argwhere(np.isfinite(share)):
        colour = "white" if share[i, j] < 60 else "black"
        axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    bars = figure.add_axes((left + middle + 0.15 / width, bottom, 1.85 / width, tall))
    bars.barh(range(len(names)), amplitude, color="#4878a8")
    bars.set_ylim(len(names) - 0.5, -0.5)
    bars.set_yticks([])
    bars.locator_params(axis="x", nbins=3)
    bars.set_xlabel("amplitude")
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    return figure


def strip(frames: np.ndarray, count: int, height_px: int) -> np.ndarray:
    """Frames of a clip side by side.

    Args:
        frames: (T, S, S, 3) uint8.
        count: how many of them, evenly spread; fewer where there are fewer.
        height_px: of the result.

    Returns:
        (height_px, count * height_px, 3) uint8.
    """
    from PIL import Image

    chosen = frames[spread(len(frames), count)]
    resized = [Image.fromarray(f).resize((height_px, height_px), Image.Resampling.BILINEAR) for f in chosen]
    return np.concatenate([np.asarray(f) for f in resized], axis=1)


def enlarged(frames: np.ndarray, least_px: int = 192) -> np.ndarray:
    """(T, H, W, 3) uint8, each pixel repeated until small frames can be looked at; H and W are even."""
    factor = max(1, -(-least_px // min(frames.shape[1:3])))
    large = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    return large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """(T, H, W, 3) uint8, H and W even, as H.264 in an MP4 file."""
    from dtf.data.h264 import write_h264

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_h264(path, np.ascontiguousarray(frames), fps)
        return path.read_bytes()


def encode_gif(frames: np.ndarray, fps: int) -> bytes:
    """(T, H, W, 3) uint8 as an endless GIF."""
    from PIL import Image

    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    file = io.BytesIO()
    settings: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(file, format="GIF", duration=round(1000 / fps), **settings)
    return file.getvalue()
