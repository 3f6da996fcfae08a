"""Open every video, or copy it, in processes of their own."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dtf.data.pool import Lost, run_isolated
from dtf.data.prepare.jobs import PART, Encoding, Probe, Resize, probe, resize
from dtf.data.prepare.rows import File, Videos

_NONE = (-1, -1)  # size and time of a file that is not there


def run(
    videos: Videos,
    args: argparse.Namespace,
    root: Path,
    out: Path,
    encoding: Encoding | None,
    console: Console,
) -> None:
    """Probe or resize every video that is not known yet, and note each result at once.

    Args:
        videos: with a journal.
        args: as parsed.
        root: the videos' paths are below it.
        out: folder of the copy; `root` without one.
        encoding: of the copy; None: there is none.
        console: for the bar.

    Raises:
        Stop: the copy cannot be written. RuntimeError: the processes do not start.
    """
    pending: dict[Probe | Resize, tuple[str, tuple[int, int]]] = {}
    full = encoding is not None or args.check == "full"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("resize" if encoding else "check", total=videos.num_found)

        def note(path: str, stamp: tuple[int, int], result: Mapping[str, Any]) -> None:
            videos.note(path, stamp, full, result)
            progress.advance(task)

        def jobs() -> Iterator[Probe | Resize]:
            for file in videos.files():
                path = os.path.join(root, file.path)
                stamp, fault = _look(path, file.path)
                if _is_known(file, stamp, full, out if encoding else None):
                    progress.advance(task)
                elif fault:
                    note(file.path, stamp, {"error": fault})
                else:
                    target = os.path.join(out, os.path.splitext(file.path)[0])
                    job = Resize(path, target, encoding) if encoding else Probe(path, full)
                    pending[job] = (file.path, stamp)
                    yield job

        results = run_isolated(
            resize if encoding else probe,
            jobs(),
            num_workers=args.workers,
            time_limit_seconds=args.time_limit,
        )
        with contextlib.closing(results):
            for job, result in results:
                note(*pending.pop(job), {"error": result.reason} if isinstance(result, Lost) else result)


def remove_parts(out: Path) -> None:
    """Remove what a killed run was about to write."""
    for folder, _, names in os.walk(out):
        for name in names:
            if name.startswith(".") and name.endswith(PART):
                os.unlink(os.path.join(folder, name))


def _look(path: str, listed: str) -> tuple[tuple[int, int], str | None]:
    """(size in bytes and time in ns of a file, why it need not be opened or None)."""
    try:
        status = os.stat(path)
    except OSError as error:
        return _NONE, "is a link to a missing file" if os.path.islink(path) else str(error.strerror)
    fault = None
    if listed != listed.strip() or "\n" in listed or "\r" in listed:
        fault = "has a line break or an outer blank in its path, which cannot stand in a list"
    return (status.st_size, status.st_mtime_ns), fault


def _is_known(file: File, stamp: tuple[int, int], full: bool, out: Path | None) -> bool:
    """Whether an earlier run has looked at this very file as thoroughly as this run would."""
    if file.stamp != stamp:
        return False
    if file.excluded or stamp == _NONE:
        return file.excluded
    return (file.full or not full) and (out is None or os.path.exists(out / file.listed))
