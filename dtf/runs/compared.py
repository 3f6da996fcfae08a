"""Runs side by side, a sweep's or any in a folder: what differs between them, and which is the best."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtf.files import at, read_yaml, replacing
from dtf.runs.folder import FAILURE, OVERRIDES, RESULTS, failure, file_of, read_overrides, read_results
from dtf.runs.measure import Measure, measures
from dtf.text import cell

_SETTINGS = (".hydra/hydra.yaml", ".hydra/config.yaml")


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

    def score(self, objective: str) -> float | None:
        """The objective; the result itself where there is none, as in a sweep over eval.py."""
        value = self.metric(objective)
        return self.headline if value is None else value

    @property
    def split(self) -> str | None:
        """What its results are on: "test", or "validation" where that is what was tested."""
        told = self.results.get("split_is", "").partition(" split")[0]
        return told or self.results.get("split")

    @property
    def is_finished(self) -> bool:
        """Whether it has results."""
        return self.status in ("finished", "skipped")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        folder: that they lie in.
        runs: at least one, the best first: by what a user may choose a run, its validation, never its test.
        measures: of their task, the headline first.
        objective: the metric that the sweep is about.
    """

    folder: Path
    runs: list[Run]
    measures: list[Measure]
    objective: str

    @property
    def keys(self) -> list[str]:
        """The settings that differ."""
        return list(self.runs[0].settings)

    @property
    def split(self) -> str:
        """What the results are on."""
        return next((run.split for run in self.runs if run.split), "test")

    @property
    def aim(self) -> Measure:
        """What the objective is a value of."""
        name = self.objective.removesuffix("_best").rpartition("/")[2]
        return next((measure for measure in self.measures if measure.name == name), Measure(name, name))

    @property
    def title(self) -> str:
        """The objective, `val/NAME_best`, as a person writes it."""
        aim = self.aim
        return self.objective.removesuffix("_best").replace("/", " ").replace(aim.name, aim.title)


def compare(folder: Path) -> Comparison | None:
    """The runs directly below a folder, the best first; None where there are none."""
    runs = read_runs(folder)
    if not runs:
        return None
    # Those of the sweep's task: what the first run with results tells.
    known = measures(next((run.results.get("task") for run in runs if run.results), None))
    objective, sign = _objective(folder, known)
    runs.sort(key=lambda run: _rank(run, objective, sign))
    return Comparison(folder, runs, known, objective)


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


def _objective(folder: Path, known: Sequence[Measure]) -> tuple[str, int]:
    """The metric that the sweep is about, and 1 where more of it is better, else -1."""
    sweeper = at(_load(folder / "multirun.yaml"), "hydra", "sweeper")
    objective = at(sweeper, "objective")
    direction = at(sweeper, "direction") or {"max": "maximize", "min": "minimize"}[known[0].mode]
    sign = -1 if direction == "minimize" else 1
    return objective if isinstance(objective, str) else f"val/{known[0].name}_best", sign


def _rank(run: Run, objective: str, sign: int) -> tuple[int, float, str]:
    score = run.score(objective)
    group = {"finished": 0, "skipped": 0, "failed": 1, "unfinished": 2}[run.status]
    return group, float("inf") if score is None else -sign * score, run.folder.name


def write_csv(path: Path, found: Comparison) -> None:
    """One row per run: folder, settings, status, figures (shares in 0..1, seconds of training), reason."""
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        head = ["run", *map(cell, found.keys), "status", found.objective, *(m.name for m in found.measures)]
        writer.writerow([*head, "split", "seconds", "clips_per_s", "reason"])
        for run in found.runs:
            r = run.results
            row = [run.metric(found.objective), *(r.get(m.name) for m in found.measures), r.get("split")]
            row += [r.get("seconds"), run.metric("train/clips_per_s"), run.reason]
            texts = ["" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in row]
            writer.writerow(map(cell, [run.folder.name, *run.settings.values(), run.status, *texts]))
