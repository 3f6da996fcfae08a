"""The runs of a sweep side by side: a table, summary.csv and summary.png.

    python -m dtf.sweep DIR

`train.py -m` ends with it. DIR is the sweep's folder, or any folder of runs: whatever differs between them
becomes a column. Everything is read from the runs' folders, so it also tells how far a sweep is that is still
running elsewhere.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dtf.files import at, read_yaml, replacing
from dtf.runs.errors import one_line_errors
from dtf.runs.folder import FAILURE, OVERRIDES, RESULTS, failure, file_of, read_overrides, read_results
from dtf.runs.measure import Measure, measures
from dtf.text import as_started, cell, markup
from dtf.view.figures import drawable, new_figure, save

ROWS_SHOWN = 40
_SETTINGS = (".hydra/hydra.yaml", ".hydra/config.yaml")
BARS_DRAWN = 60
VALUES_AS_BARS = 8


@dataclass
class Run:
    """What a run's folder says about it.

    Attributes:
        folder: of the run.
        status: "finished"; "skipped": already when the sweep was last started; "failed"; "unfinished": still
            running, or killed.
        reason: of a failure, in one line.
        results: of results.json.
        overrides: setting -> value, as it was started.
        earlier: whether its results or its failure were there when the sweep was last started.
        settings: those that differ between the runs, filled in from the run's configuration.
    """

    folder: Path
    status: Literal["finished", "skipped", "failed", "unfinished"]
    reason: str
    results: dict[str, Any]
    overrides: dict[str, str]
    earlier: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> float | None:
        """The headline of its results."""
        return self.results.get(measures(self.results.get("task"))[0].name) if self.results else None

    def metric(self, name: str) -> float | None:
        """A metric of results.json's "metrics"."""
        return self.results.get("metrics", {}).get(name)

    @property
    def split(self) -> str | None:
        """What its results are on: "test", or "validation" where that is what was tested."""
        told = self.results.get("split_is", "").partition(" split")[0]
        return told or self.results.get("split")

    @property
    def is_finished(self) -> bool:
        """Whether it has results."""
        return self.status in ("finished", "skipped")


def summarize(folder: Path) -> int:
    """Write summary.csv and summary.png into a folder of runs and print the table.

    Returns:
        How many runs failed since the sweep was last started.
    """
    runs = read_runs(folder)
    if not runs:
        return 0
    objective, sign = _objective(folder, _measures(runs))
    # By what a user may choose a run: its validation, never its test.
    runs.sort(key=lambda run: _rank(run, objective, sign))
    write_csv(folder / "summary.csv", runs, objective)
    finished = [run for run in runs if run.is_finished]
    if finished:
        draw(folder / "summary.png", runs, objective, sign, folder.name)
    print_table(folder, runs, objective)
    return sum(run.status == "failed" and not run.earlier for run in runs)


def read_runs(folder: Path) -> list[Run]:
    """All runs directly below a folder, by name."""
    start = folder / "multirun.yaml"
    # Written when the sweep starts, on the file system that the runs write to: no clocks to compare.
    started = start.stat().st_mtime_ns if start.is_file() else 0
    runs = [_read_run(path.parent.parent, started) for path in sorted(folder.glob("*/.hydra/overrides.yaml"))]
    _fill_settings(runs)
    return runs


def _read_run(folder: Path, started: int) -> Run:
    try:
        for name in (OVERRIDES, FAILURE, RESULTS, *_SETTINGS):
            file_of(folder, name)
        pairs = [text.lstrip("+~").partition("=") for text in read_overrides(folder / OVERRIDES)]
        overrides = {key: value for key, _, value in pairs if key not in ("output", "resume")}
    except ValueError as error:
        return Run(folder, "failed", str(error), {}, {}, earlier=True)
    reason, results = failure(folder), folder / RESULTS
    if reason is not None:
        earlier = (folder / FAILURE).stat().st_mtime_ns < started
        return Run(folder, "failed", reason, {}, overrides, earlier)
    if not results.is_file():
        return Run(folder, "unfinished", "", {}, overrides)
    earlier = results.stat().st_mtime_ns < started
    try:
        found = read_results(results)
    except ValueError as error:
        return Run(folder, "failed", str(error), {}, overrides, earlier)
    return Run(folder, "skipped" if earlier else "finished", "", found, overrides, earlier)


def _fill_settings(runs: Sequence[Run]) -> None:
    """Find what differs. A run that was started without a setting has its default."""
    for key in dict.fromkeys(key for run in runs for key in run.overrides):
        values = [run.overrides[key] if key in run.overrides else _default(run.folder, key) for run in runs]
        if len(set(values)) > 1:
            for run, value in zip(runs, values, strict=True):
                run.settings[key] = value


def _default(folder: Path, key: str) -> str:
    hydra, config = (_load(folder / name) for name in _SETTINGS)
    choice = at(hydra, "hydra", "runtime", "choices", key)
    value = at(config, *key.split(".")) if choice is None else choice
    return "" if value is None else str(value)


def _load(path: Path) -> Any:
    """A file of settings, None where it is not there; references are left as they are."""
    return read_yaml(path) if path.is_file() else None


def _measures(runs: Sequence[Run]) -> list[Measure]:
    """The measures of the sweep's task: those that the first run with results tells."""
    return measures(next((run.results.get("task") for run in runs if run.results), None))


def _objective(folder: Path, known: Sequence[Measure]) -> tuple[str, int]:
    """The metric that the sweep is about, and 1 where more of it is better, else -1."""
    sweeper = at(_load(folder / "multirun.yaml"), "hydra", "sweeper")
    objective = at(sweeper, "objective")
    direction = at(sweeper, "direction") or {"max": "maximize", "min": "minimize"}[known[0].mode]
    sign = -1 if direction == "minimize" else 1
    return objective if isinstance(objective, str) else f"val/{known[0].name}_best", sign


def _score(run: Run, objective: str) -> float | None:
    """The objective; the result itself where there is none, as in a sweep over eval.py."""
    value = run.metric(objective)
    return run.headline if value is None else value


def _rank(run: Run, objective: str, sign: int) -> tuple[int, float, str]:
    score = _score(run, objective)
    group = {"finished": 0, "skipped": 0, "failed": 1, "unfinished": 2}[run.status]
    return group, float("inf") if score is None else -sign * score, run.folder.name


# ------------------------------------------------------------------------------------------------- table


def write_csv(path: Path, runs: Sequence[Run], objective: str) -> None:
    """One row per run: folder, settings, status, figures (shares in 0..1, seconds of training), reason."""
    keys = list(runs[0].settings)
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        known = _measures(runs)
        head = ["run", *map(cell, keys), "status", objective, *(measure.name for measure in known)]
        writer.writerow([*head, "split", "seconds", "clips_per_s", "reason"])
        for run in runs:
            r = run.results
            row = [run.metric(objective), *(r.get(measure.name) for measure in known), r.get("split")]
            row += [r.get("seconds"), run.metric("train/clips_per_s"), run.reason]
            texts = ["" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in row]
            writer.writerow(map(cell, [run.folder.name, *run.settings.values(), run.status, *texts]))


def print_table(folder: Path, runs: Sequence[Run], objective: str) -> None:
    """Print the runs, the best one by the objective first."""
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
    keys = list(runs[0].settings)
    for key in keys or ["run"]:
        longest = max(len(run.settings.get(key, run.folder.name)) for run in runs)
        table.add_column(markup(key), overflow="fold", min_width=min(16, longest))
    table.add_column("status", no_wrap=True)
    split = next((run.split for run in runs if run.split), "test")
    known = _measures(runs)
    aim = _measure(objective, known)
    figures = {
        _title(objective, known): [_figure(aim, run.metric(objective)) for run in runs],
        **{f"{split} {m.title}": [_figure(m, run.results.get(m.name)) for run in runs] for m in known},
        "time": [_time(run.results.get("seconds")) for run in runs],
        "clips/s": [_number(run.metric("train/clips_per_s")) for run in runs],
    }
    # Runs of eval.py have no training.
    figures = {column: texts for column, texts in figures.items() if any(texts)}
    for column in figures:
        # In a narrow terminal, headings break where they have a space.
        table.add_column(markup(column), justify="right", no_wrap=" " not in column)
    for i, run in enumerate(runs[:ROWS_SHOWN]):
        settings = [markup(value) for value in run.settings.values()] if keys else [markup(run.folder.name)]
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
        notes.insert(0, (f"best {_title(objective, known)}", runs[0].folder))
    width = max(len(what) for what, _ in notes)
    for what, path in notes:
        shown = os.path.relpath(path)
        shown = str(path) if shown.startswith("..") else shown
        console.print(f"{what:<{width}}  {markup(shown)}", soft_wrap=True)


def _title(objective: str, known: Sequence[Measure]) -> str:
    """`val/NAME_best` as a person writes it."""
    measure = _measure(objective, known)
    return objective.removesuffix("_best").replace("/", " ").replace(measure.name, measure.title)


def _measure(objective: str, known: Sequence[Measure]) -> Measure:
    """What the objective is a value of."""
    name = objective.removesuffix("_best").rpartition("/")[2]
    return next((measure for measure in known if measure.name == name), Measure(name, name))


def _figure(measure: Measure, value: float | None) -> str:
    return "" if value is None else measure.format(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


# ----------------------------------------------------------------------------------------------- picture


def draw(path: Path, runs: Sequence[Run], objective: str, sign: int, title: str) -> None:
    """Draw the runs: bars for a grid, one panel per setting where a setting has many values (a search).

    Args:
        path: a PNG file.
        runs: at least one of them finished; the best first.
        objective, sign: from the sweep.
        title: above the picture.
    """
    keys = list(runs[0].settings)
    many = [
        k for k in keys if k != "seed" and len(_values(runs, k)) > VALUES_AS_BARS and _is_numeric(runs, k)
    ]
    figure = new_figure(6.4, 4.8, "constrained")
    if many:
        _draw_panels(figure, [r for r in runs if r.is_finished], keys, objective)
    else:
        _draw_bars(figure, runs, keys, objective)
    figure.suptitle(drawable(title), parse_math=False)
    with replacing(path, "wb") as file:
        save(figure, file, dpi=120)


def _draw_bars(figure: Any, runs: Sequence[Run], keys: list[str], objective: str) -> None:
    """Horizontal bars of the result, grouped; seeds are points on the bar of their mean.

    One piece, though long: where each bar, point and text stands follows from the ones above it.
    """
    from matplotlib import colormaps

    known = _measures(runs)
    headline = known[0]
    # The objective is drawn on the same axis, if it is of the same kind.
    joint = _measure(objective, known).share is headline.share and headline.name in objective
    inner, outer = _axes(runs, keys)
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
            found = [r for r in bars[group, member] if r.headline is not None]
            validated = [v for r in found if joint and (v := r.metric(objective)) is not None]
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
        label = _title(objective, known) + " (best epoch)"
        axes.scatter([], [], s=120, marker="|", color="crimson", label=drawable(label))
    split = next((run.split for run in runs if run.split), "test")
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
    axes.set_xlabel(f"{drawable(f'{split} {headline.title}')}{note}", parse_math=False)
    axes.set_ylabel(drawable(", ".join(outer)), parse_math=False)
    if axes.get_legend_handles_labels()[1]:
        legend = figure.legend(
            title=drawable(inner) or None, loc="outside right upper", fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.set_size_inches(8.5, 1.3 + 0.95 * max(1.2, bottom))


def _draw_panels(figure: Any, runs: Sequence[Run], keys: list[str], objective: str) -> None:
    """What was reached over each setting, one panel each; a star marks the best run."""
    panels = keys[:12]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure.set_size_inches(0.8 + 3.2 * columns, 0.6 + 2.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scores = [_score(run, objective) or 0.0 for run in runs]
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
        if _measure(objective, _measures(runs)).share:
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        if column == 0:
            axes.set_ylabel(drawable(_title(objective, _measures(runs))), parse_math=False)
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


def main(arguments: list[str] | None = None) -> None:
    """`python -m dtf.sweep DIR`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        if {"-h", "--help"} & set(arguments):
            print(as_started((__doc__ or "").strip()))
            return
        if len(arguments) != 1 or not Path(arguments[0]).is_dir():
            raise ValueError(f"give one folder of runs, got {' '.join(arguments) or 'nothing'}")
        folder = Path(arguments[0]).resolve()
        if not read_runs(folder):
            raise ValueError(f"{arguments[0]} holds no runs (no */.hydra/overrides.yaml)")
        summarize(folder)


if __name__ == "__main__":
    main()
