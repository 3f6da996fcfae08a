"""The section of curves: one panel for each metric of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dtf.view.figures import drawable, new_figure
from dtf.view.pictures import to_svg
from dtf.view.report.blocks import Block, image

if TYPE_CHECKING:
    from dtf.runs.reading import Curve, Run

POINTS_SHOWN = 400
MOST_PANELS = 40
"""Of what callbacks log beside the known metrics."""

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


def curves(run: Run) -> list[Block]:
    """A panel for each metric that was logged, the known ones first."""
    own = [
        (m.title, [(f"train/{m.name}", _TRAINING), (f"val/{m.name}", _VALIDATION)], "%" if m.share else "")
        for m in run.measures
    ]
    known: list[Panel] = [PANELS[0], *own, *PANELS[1:]]
    shown = {name for _, wanted, _ in known for name, _ in wanted}
    # What other callbacks log; the test is a single point.
    others = sorted(n for n in run.curves if n not in shown and not n.startswith("test/"))
    panels = [*known, *((name, [(name, "")], "") for name in others[:MOST_PANELS])]
    pictures = []
    for title, wanted, unit in panels:
        found = [(run.curves[name], label) for name, label in wanted if name in run.curves]
        if found:
            pictures.append(image(_draw(title, found, unit), "svg+xml", _say(title, found, unit)))
    blocks: list[Block] = [{"small": pictures}] if pictures else []
    if len(others) > MOST_PANELS:
        blocks.append({"note": f"and {len(others) - MOST_PANELS} more that are not shown"})
    return blocks


def _say(title: str, curves: Sequence[tuple[Curve, str]], unit: str) -> str:
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


def _draw(title: str, curves: Sequence[tuple[Curve, str]], unit: str) -> bytes:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

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
