"""What a run leaves behind: lists, excluded videos, report."""

from __future__ import annotations

import argparse
import collections
import csv
import importlib.metadata
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from dtf.data.annotations import WITHHELD
from dtf.data.lists import read_list
from dtf.data.prepare.journal import Journal
from dtf.data.prepare.videos import EXAMPLES, LISTS, MISSING, USABLE, Videos
from dtf.files import atomically
from dtf.text import cell, printable

_REASONS = 50  # kinds of reasons that are counted apart


def write_results(
    videos: Videos,
    journal: Journal,
    out: Path,
    notes: list[str],
    skipped: list[str],
    args: argparse.Namespace,
    files: Mapping[str, Path],
) -> dict[str, Any]:
    """Write lists, classes, excluded videos and report; returns the report."""
    folder = out / LISTS
    _write(folder / "classes.txt", (f"{name}\n" for name in videos.class_names))
    reasons = {split: collections.Counter[str]() for split in videos.splits}
    _write(folder / "excluded.csv", _excluded_rows(videos, journal, reasons))
    splits: dict[str, Any] = {}
    for number, split in enumerate(videos.splits):
        chosen = np.flatnonzero((videos.split_of == number) & (videos.state == USABLE))
        labelled = videos.labels[chosen] != WITHHELD
        path = folder / f"{split}.txt"
        if labelled.any():
            _write(path, (f"{videos.listed_path(i)} {videos.labels[i]}\n" for i in chosen[labelled].tolist()))
        else:
            path.unlink(missing_ok=True)
        if not labelled.all():
            _write(
                folder / f"{split}_unlabelled.txt", (f"{videos.listed_path(i)}\n" for i in chosen[~labelled])
            )
        splits[split] = _summary(videos, number, chosen, reasons[split])
    report = {
        "dataset": args.dataset,
        "dtf_version": importlib.metadata.version("dtf"),
        "check": args.check,
        "resize": args.resize,
        "annotations": {role: printable(str(path)) for role, path in files.items()},
        "classes": len(videos.class_names),
        "splits": splits,
        "notes": notes,
        "skipped_rows": {"count": len(skipped), "examples": skipped[:EXAMPLES]},
        "not_annotated": videos.extra.report(),
        "found_twice": videos.doubles.report(),
        "in_folder_of_another_class": videos.misplaced.report(),
    }
    _write(folder / "report.json", [json.dumps(report, indent=2, ensure_ascii=False), "\n"])
    for split in videos.splits:
        if (folder / f"{split}.txt").exists():
            faults: list[str] = []
            index = read_list(out, f"{LISTS}/{split}.txt", videos.class_names, faults)
            assert not faults, faults
            assert len(index) == splits[split]["listed"]
    return report


def _excluded_rows(
    videos: Videos, journal: Journal, reasons: Mapping[str, collections.Counter[str]]
) -> Iterator[str]:
    """Lines of the table of videos that are annotated but not in the lists; counts the reasons on the way."""
    yield csv_row("split", "name", "path", "reason")
    for i in np.flatnonzero(videos.state != USABLE).tolist():
        split = videos.splits[videos.split_of[i]]
        if videos.state[i] == MISSING:
            path, reason = "", "missing"
        else:
            path, reason = videos.path(i), str(journal.record_at(int(videos.line_at[i])).get("error"))
        if reason in reasons[split] or len(reasons[split]) < _REASONS:
            reasons[split][reason] += 1
        else:
            reasons[split]["other"] += 1
        yield csv_row(split, videos.ids[i].decode(), path, reason)


def _summary(
    videos: Videos, number: int, chosen: np.ndarray, reasons: collections.Counter[str]
) -> dict[str, Any]:
    """Counts of one split."""
    mine = videos.split_of == number
    split = videos.splits[number]
    frames = videos.frames[chosen]
    present = np.unique(videos.labels[chosen])
    labels = np.unique(videos.labels[mine & (videos.labels >= 0)])
    sizes = collections.Counter(
        zip(videos.width[chosen].tolist(), videos.height[chosen].tolist(), strict=True)
    )
    rates = collections.Counter(np.round(videos.fps[chosen].astype(float), 2).tolist())
    return {
        "official": videos.data_set.official.get(split),
        "annotated": int(mine.sum()),
        "found": int((mine & videos.has_file).sum()),
        "usable": len(chosen),
        "listed": int((videos.labels[chosen] != WITHHELD).sum()),
        "excluded": int(mine.sum()) - len(chosen),
        "reasons": dict(reasons.most_common()),
        "damaged_but_usable": int(videos.damaged[chosen].sum()),
        "rotated": int((videos.rotation[chosen] != 0).sum()),
        "frames": {"min": int(frames.min()), "median": int(np.median(frames)), "max": int(frames.max())}
        if len(frames)
        else None,
        "fps": {f"{rate:g}": count for rate, count in rates.most_common(5)},
        "sizes": {f"{w}x{h}": count for (w, h), count in sizes.most_common(5)},
        "classes_without_video": [videos.class_names[k] for k in np.setdiff1d(labels, present)][:EXAMPLES],
    }


def table(report: Mapping[str, Any]) -> Table:
    table = Table("split", "official", "annotated", "found", "usable", "excluded", "main reasons")
    for split, row in report["splits"].items():
        reasons = "\n".join(
            f"{count} {printable(reason)}" for reason, count in list(row["reasons"].items())[:5]
        )
        counts = (str(row[name]) for name in ("official", "annotated", "found", "usable", "excluded"))
        table.add_row(split, *counts, Text(reasons))
    return table


def csv_row(*fields: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(cell, fields))
    return line.getvalue()


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears complete or not at all; odd bytes of file names are kept."""
    with atomically(path, errors="surrogateescape", newline="\n") as file:
        file.writelines(lines)
