"""Runs side by side: a table in the terminal, and a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dtf.files import replacing
from dtf.text import markup
from dtf.view.figures import drawable, new_figure, save

if TYPE_CHECKING:
    from dtf.runs.compared import Comparison, Run
    from dtf.runs.measure import Measure

ROWS_SHOWN = 40
BARS_DRAWN = 60
VALUES_AS_BARS = 8


def print_table(found: Comparison) -> None:
    """Print the runs, the best one by the objective first."""
    folder, runs, objective, known = found.folder, found.runs, found.objective, found.measures
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file has no edge, and nobody can widen it afterwards.
        console.width = max(console.width, 160)
    counts = {
        s: sum(run.status == s for run in runs) for s in ("finished", "skipped", "failed", "unfinished")
    }
    table = Table(
        title=f"{markup(folder.name)}: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n),
        title_justify="left",
    )
    for key in found.keys or ["run"]:
        longest = max(len(run.settings.get(key, run.folder.name)) for run in runs)
        table.add_column(markup(key), overflow="fold", min_width=min(16, longest))
    table.add_column("status", no_wrap=True)
    figures = {
        found.title: [_figure(found.aim, run.metric(objective)) for run in runs],
        **{f"{found.split} {m.title}": [_figure(m, run.results.get(m.name)) for run in runs] for m in known},
        "time": [_time(run.results.get("seconds")) for run in runs],
        "clips/s": [_number(run.metric("train/clips_per_s")) for run in runs],
    }
    # Runs of eval.py have no training.
    figures = {column: texts for column, texts in figures.items() if any(texts)}
    for column in figures:
        # In a narrow terminal, headings break where they have a space.
        table.add_column(markup(column), justify="right", no_wrap=" " not in column)
    for i, run in enumerate(runs[:ROWS_SHOWN]):
        settings = (
            [markup(value) for value in run.settings.values()] if found.keys else [markup(run.folder.name)]
        )
        colour = {"failed": "red", "unfinished": "yellow"}.get(run.status)
        status = f"[{colour}]{run.status}[/{colour}]" if colour else run.status
        table.add_row(*settings, status, *(texts[i] for texts in figures.values()))
    console.print(table)
    if len(runs) > ROWS_SHOWN:
        console.print(f"and {len(runs) - ROWS_SHOWN} more")
    for run in [run for run in runs if run.status == "failed"][:ROWS_SHOWN]:
        console.print(f"[red]failed[/red]  {markup(run.folder.name)}: {markup(run.reason)}", soft_wrap=True)
    notes = [("table", folder / "summary.csv")]
    if runs[0].is_finished:
        notes.append(("picture", folder / "summary.png"))
    if runs[0].metric(objective) is not None:
        notes.insert(0, (f"best {found.title}", runs[0].folder))
    width = max(len(what) for what, _ in notes)
    for what, path in notes:
        shown = os.path.relpath(path)
        shown = str(path) if shown.startswith("..") else shown
        console.print(f"{what:<{width}}  {markup(shown)}", soft_wrap=True)


def _figure(measure: Measure, value: float | None) -> str:
    return "" if value is None else measure.format(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def draw(path: Path, found: Comparison) -> None:
    """Draw the runs: bars for a grid, one panel per setting where a setting has many values (a search).

    Args:
        path: a PNG file.
        found: the runs, at least one of them finished.
    """
    runs = found.runs
    many = [
        k
        for k in found.keys
        if k != "seed" and len(_values(runs, k)) > VALUES_AS_BARS and _is_numeric(runs, k)
    ]
    figure = new_figure(6.4, 4.8, "constrained")
    if many:
        _draw_panels(figure, found)
    else:
        _draw_bars(figure, found)
    figure.suptitle(drawable(found.folder.name), parse_math=False)
    with replacing(path, "wb") as file:
        save(figure, file, dpi=120)


def _draw_bars(figure: Any, found: Comparison) -> None:
    """Horizontal bars of the result, grouped; seeds are points on the bar of their mean.

    One piece, though long: where each bar, point and text stands follows from the ones above it.
    """
    from matplotlib import colormaps

    runs, objective, headline = found.runs, found.objective, found.measures[0]
    # The objective is drawn on the same axis, if it is of the same kind.
    joint = found.aim.share is headline.share and headline.name in objective
    inner, outer = _axes(runs, found.keys)
    bars: dict[tuple[tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        group = tuple(run.settings[k] for k in outer) if outer or inner else (run.folder.name,)
        bars.setdefault((group, run.settings[inner] if inner else ""), []).append(run)
    left_out = max(0, len(bars) - BARS_DRAWN)
    # Runs come best first, and so do the bars that are kept.
    shown = list(bars)[:BARS_DRAWN]
    groups = sorted({group for group, _ in shown}, key=lambda g: [_order(v) for v in g])
    series = sorted({value for _, value in shown}, key=_order)
    colours = [colormaps["viridis"](0.15 + 0.7 * i / max(1, len(series) - 1)) for i in range(len(series))]

    height = 0.32
    space = 0.35
    axes = figure.add_subplot()
    ticks, bottom, top = [], 0.0, 0.0
    labelled = set()
    for group in groups:
        members = [s for s in series if (group, s) in shown]
        ticks.append(bottom + (len(members) - 1) * height / 2)
        for i, member in enumerate(members):
            y = bottom + i * height
            results = [v for r in bars[group, member] if (v := r.headline) is not None]
            tested = [r for r in bars[group, member] if r.headline is not None]
            validated = [v for r in tested if joint and (v := r.metric(objective)) is not None]
            colour = colours[series.index(member)] if inner else "#4878a8"
            label = drawable(member) if inner and member not in labelled else None
            labelled.add(member)
            mean = sum(results) / len(results) if results else 0.0
            axes.barh(y, mean, 0.85 * height, color=colour, label=label, zorder=2)
            if len(results) > 1:
                axes.scatter(results, [y] * len(results), s=14, color="white", edgecolors="black", zorder=4)
            if validated:
                validated = [sum(validated) / len(validated)]
                axes.scatter(validated, [y], s=160, marker="|", color="crimson", zorder=3)
            text = headline.format(mean, 1) if results else ""
            text += f", val {headline.format(validated[0], 1)}" if validated else ""
            text += f" (n={len(results)})" if len(results) > 1 else ""
            lost = len(bars[group, member]) - len(results)
            if lost:
                statuses = sorted({r.status for r in bars[group, member] if not r.is_finished})
                text += f"  {lost} {'/'.join(statuses)}" if results else "/".join(statuses)
            farthest = max([mean, *results, *validated])
            axes.annotate(text, (farthest, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
            top = max(top, farthest)
        bottom += len(members) * height + space
    if joint and any(r.metric(objective) is not None for r in runs):
        label = found.title + " (best epoch)"
        axes.scatter([], [], s=120, marker="|", color="crimson", label=drawable(label))
    axes.set_yticks(ticks, [drawable(", ".join(group)) for group in groups], parse_math=False)
    axes.set_ylim(bottom - height / 2, -height - space / 2)
    axes.set_xlim(0, max(top, 0.01) * 1.4)
    if headline.share:
        # Beyond the longest bar is room for the figures, not for shares above 1.
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1 + 1e-9])
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    note = f" (the best {BARS_DRAWN} of {len(bars)})" if left_out else ""
    axes.set_xlabel(f"{drawable(f'{found.split} {headline.title}')}{note}", parse_math=False)
    axes.set_ylabel(drawable(", ".join(outer)), parse_math=False)
    if axes.get_legend_handles_labels()[1]:
        legend = figure.legend(
            title=drawable(inner) or None, loc="outside right upper", fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.set_size_inches(8.5, 1.3 + 0.95 * max(1.2, bottom))


def _draw_panels(figure: Any, found: Comparison) -> None:
    """What was reached over each setting, one panel each; a star marks the best run."""
    runs = [run for run in found.runs if run.is_finished]
    panels = found.keys[:12]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure.set_size_inches(0.8 + 3.2 * columns, 0.6 + 2.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scores = [run.score(found.objective) or 0.0 for run in runs]
    for (row, column), key in zip(product(range(rows), range(columns)), panels, strict=False):
        axes = grid[row][column]
        texts = [run.settings[key] for run in runs]
        if _is_numeric(runs, key):
            x: list[float] = [float(t) for t in texts]
            if min(x) > 0 and max(x) >= 10 * min(x):
                axes.set_xscale("log")
        else:
            names = sorted(set(texts), key=_order)
            x = [float(names.index(t)) for t in texts]
            axes.set_xticks(range(len(names)), [drawable(n) for n in names], parse_math=False)
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.scatter(x, scores, s=22, color="#4878a8", alpha=0.7)
        axes.scatter(x[0], scores[0], s=130, marker="*", color="crimson", zorder=3)
        axes.set_xlabel(drawable(key), parse_math=False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        if found.aim.share:
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        if column == 0:
            axes.set_ylabel(drawable(found.title), parse_math=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()


def _axes(runs: Sequence[Run], keys: list[str]) -> tuple[str, list[str]]:
    """What the bars of a group stand for, and what makes the groups. Seeds share a bar."""
    keys = [k for k in keys if k != "seed"] if set(keys) != {"seed"} else keys
    if len(keys) < 2:
        return "", keys
    numeric = [k for k in keys if _is_numeric(runs, k)]
    inner = max(numeric, key=lambda k: len(_values(runs, k))) if numeric else keys[-1]
    return inner, [k for k in keys if k != inner]


def _values(runs: Sequence[Run], key: str) -> set[str]:
    return {run.settings[key] for run in runs}


def _is_numeric(runs: Sequence[Run], key: str) -> bool:
    return all(not _order(value)[0] for value in _values(runs, key))


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
