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
from dtf.data.prepare.journal import Journal
from dtf.data.prepare.videos import EXCLUDED, MISSING, Videos


def run(
    videos: Videos,
    journal: Journal,
    args: argparse.Namespace,
    root: Path,
    out: Path,
    encoding: Encoding | None,
    console: Console,
) -> None:
    """Probe or resize every video that is not known yet, and note each result at once."""
    pending: dict[Probe | Resize, tuple[int, tuple[int, int]]] = {}
    full = encoding is not None or args.check == "full"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("resize" if encoding else "check", total=videos.num_found)

        def note(i: int, stamp: tuple[int, int], result: Mapping[str, Any]) -> None:
            head = {
                "name": videos.ids[i].decode(),
                "path": videos.path(i),
                "size": stamp[0],
                "time": stamp[1],
            }
            record = {**head, "full": full, **result}
            videos.take(i, record, journal.append(record))
            progress.advance(task)

        def jobs() -> Iterator[Probe | Resize]:
            for i in videos.found().tolist():
                path = os.path.join(root, videos.path(i))
                try:
                    status = os.stat(path)
                except OSError as error:
                    reason = "is a link to a missing file" if os.path.islink(path) else error.strerror
                    if _is_known(videos, i, (-1, -1), full, None):
                        progress.advance(task)
                    else:
                        note(i, (-1, -1), {"error": reason})
                    continue
                stamp = (status.st_size, status.st_mtime_ns)
                target = os.path.join(out, os.path.splitext(videos.path(i))[0])
                if _is_known(videos, i, stamp, full, out if encoding else None):
                    progress.advance(task)
                elif fault := _unlistable(videos.path(i)):
                    note(i, stamp, {"error": fault})
                else:
                    job = Resize(path, target, encoding) if encoding else Probe(path, full)
                    pending[job] = (i, stamp)
                    yield job

        results = run_isolated(
            resize if encoding else probe,
            jobs(),
            num_workers=args.workers,
            time_limit_seconds=args.time_limit,
        )
        with contextlib.closing(results):
            for job, result in results:
                i, stamp = pending.pop(job)
                note(i, stamp, {"error": result.reason} if isinstance(result, Lost) else result)


def remove_parts(out: Path) -> None:
    """Remove what a killed run was about to write."""
    for folder, _, names in os.walk(out):
        for name in names:
            if name.startswith(".") and name.endswith(PART):
                os.unlink(os.path.join(folder, name))


def _is_known(videos: Videos, i: int, stamp: tuple[int, int], full: bool, out: Path | None) -> bool:
    """Whether an earlier run has looked at this very file as thoroughly as this run would."""
    if videos.state[i] == MISSING or (videos.size[i], videos.time[i]) != stamp:
        return False
    if videos.state[i] == EXCLUDED:
        return True
    return bool(videos.full[i] or not full) and (out is None or os.path.exists(out / videos.listed_path(i)))


def _unlistable(path: str) -> str | None:
    if path != path.strip() or "\n" in path or "\r" in path:
        return "has a line break or an outer blank in its path, which cannot stand in a list"
    return None
