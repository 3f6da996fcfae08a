"""What a run leaves behind: results.json, the files of its task, a table in the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dtf.data.datamodule import VideoDataModule
from dtf.data.lists import PICTURES
from dtf.files import write_json
from dtf.lit.tasks.task import Result, Task
from dtf.runs.folder import RESULTS
from dtf.text import as_started, markup, program


def write_all(
    folder: Path,
    task: Task,
    result: Result,
    data: VideoDataModule,
    stage: str,
    title: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write results.json and the files of the task.

    Args:
        folder: where to.
        task: of the run.
        result: what was found.
        data: names the videos.
        stage: "val" or "test".
        title: of pictures.
        about: plain data that goes into results.json beside the figures.

    Returns:
        The figures, from `Result.describe`, and "kind", the word for one of the videos: "video" or
        "picture".
    """
    found = {"kind": data.kind.word, **result.describe(data, stage)}
    result.write(folder, data, stage, title)
    # Written last: it marks a run as finished.
    split = {"split": stage, "split_is": data.describe_split(stage)}
    write_json(folder / RESULTS, found | split | {"task": task.description()} | dict(about))
    return found


def write_untested(folder: Path, task: Task, about: Mapping[str, Any]) -> None:
    """Write results.json of a run that has videos for training only."""
    write_json(folder / RESULTS, {"task": task.description()} | dict(about))


def result_rows(task: Task, result: Result, found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """The lines of the table that `print_results` prints: the measures, and what the result adds.

    Args:
        task: of the run.
        result: what was found.
        found: from `write_all`.
    """
    measures = [
        (m.title, "none" if found[m.name] is None else m.format(found[m.name])) for m in task.measures
    ]
    first, *others = result.rows(found)
    return [[*measures, *first], *others]


def print_results(
    title: str, sections: Sequence[Sequence[tuple[str, str]]], notes: Sequence[tuple[str, str]]
) -> None:
    """Print the result as a table.

    Args:
        title: above the table.
        sections: of the table, lines (what, value), the most important one first; empty: nothing was
            evaluated, and there is no table.
        notes: lines (what, value) below the table, at least one.
    """
    console = Console(highlight=False)
    # Not the table's own title, which would be folded to the width of the figures.
    console.print(f"[italic]{markup(title)}[/italic]", soft_wrap=True)
    if sections:
        table = Table(show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for number, lines in enumerate(sections):
            for what, value in lines:
                bold = number == 0 and (what, value) == lines[0]
                table.add_row(markup(what), f"[bold]{markup(value)}[/bold]" if bold else markup(value))
            if lines:
                table.add_section()
        console.print(table)
    # Not in the table: a folded command cannot be copied.
    width = max(len(what) for what, _ in notes)
    for what, value in notes:
        console.print(f"{what:<{width}}  {markup(value)}", soft_wrap=True)


def next_commands(data: VideoDataModule, checkpoint: Path) -> list[tuple[str, str]]:
    """Lines (what, command): what one does with a checkpoint, beside data like those it was trained on."""
    kind = data.kind
    # All clips of a picture are the same.
    views = "1x3" if kind is PICTURES else "3x3"
    predict = as_started("python -m dtf.predict")
    return [
        ("more views", f"{program('eval')} checkpoint={shown(checkpoint)} views={views}"),
        (f"your {kind.word}", f"{predict} {kind.word.upper()} checkpoint={shown(checkpoint)}"),
    ]


def shown(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
