"""What a run leaves behind: lists, excluded videos, report."""

from __future__ import annotations

import argparse
import collections
import csv
import importlib.metadata
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from dtf.data.annotations import WITHHELD
from dtf.data.lists import read_list
from dtf.data.prepare.rows import Videos, listed_path, unpack
from dtf.data.prepare.scan import EXAMPLES, LISTS, Scan
from dtf.data.sets.data_set import DATA_SETS
from dtf.files import atomically
from dtf.text import cell, printable

_REASONS = 50  # kinds of reasons that are counted apart


def write_results(
    videos: Videos,
    scan: Scan,
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
    _write(folder / "excluded.csv", _excluded_rows(videos, reasons))
    splits: dict[str, Any] = {}
    for number, split in enumerate(videos.splits):
        path = folder / f"{split}.txt"
        listed = _listed(videos, number, "label != ?")
        if (first := next(listed, None)) is not None:
            rows = itertools.chain([first], listed)
            _write(path, (f"{video} {label}\n" for video, label in rows))
        else:
            path.unlink(missing_ok=True)
        unlabelled = _listed(videos, number, "label = ?")
        if (first := next(unlabelled, None)) is not None:
            rows = itertools.chain([first], unlabelled)
            _write(folder / f"{split}_unlabelled.txt", (f"{video}\n" for video, _ in rows))
        splits[split] = _summary(videos, args.dataset, number, reasons[split])
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
        "not_annotated": scan.extra.report(),
        "found_twice": scan.doubles.report(),
        "in_folder_of_another_class": scan.misplaced.report(),
    }
    _write(folder / "report.json", [json.dumps(report, indent=2, ensure_ascii=False), "\n"])
    for split in videos.splits:
        if (folder / f"{split}.txt").exists():
            faults: list[str] = []
            index = read_list(out, f"{LISTS}/{split}.txt", videos.class_names, faults)
            assert not faults, faults
            assert len(index) == splits[split]["listed"]
    return report


def _listed(videos: Videos, split: int, labels: str) -> Iterator[tuple[str, int]]:
    """(path for the list, label) of usable videos, in the order of the annotations."""
    query = (
        f"SELECT path, ending, label FROM outcomes WHERE usable AND split = ? AND {labels} ORDER BY number"
    )
    for path, ending, label in videos.db.execute(query, (split, WITHHELD)):
        yield listed_path(unpack(path), ending), label


def _excluded_rows(videos: Videos, reasons: Mapping[str, collections.Counter[str]]) -> Iterator[str]:
    """Lines of the table of videos that are annotated but not in the lists; counts the reasons on the way."""
    yield csv_row("split", "name", "path", "reason")
    query = "SELECT split, name, path, error FROM outcomes WHERE usable IS NOT 1 ORDER BY number"
    for number, name, path, error in videos.db.execute(query):
        split, reason = videos.splits[number], "missing" if path is None else unpack(error)
        if reason in reasons[split] or len(reasons[split]) < _REASONS:
            reasons[split][reason] += 1
        else:
            reasons[split]["other"] += 1
        yield csv_row(split, name, "" if path is None else unpack(path), reason)


def _summary(videos: Videos, dataset: str, number: int, reasons: collections.Counter[str]) -> dict[str, Any]:
    """Counts of one split."""
    counts = """
        SELECT count(*), count(path), total(usable), total(usable AND label != ?),
            total(usable AND damaged != 0), total(usable AND rotation != 0)
        FROM outcomes WHERE split = ?"""
    annotated, found, usable, listed, damaged, rotated = map(
        int, videos.db.execute(counts, (WITHHELD, number)).fetchone()
    )
    query = "SELECT frames FROM outcomes WHERE usable AND split = ?"
    frames = np.array([count for (count,) in videos.db.execute(query, (number,))])
    absent = """
        SELECT label FROM outcomes WHERE split = ? AND label >= 0
        GROUP BY label HAVING total(usable) = 0 ORDER BY label LIMIT ?"""
    labels = videos.db.execute(absent, (number, EXAMPLES))
    return {
        "official": DATA_SETS[dataset].official.get(videos.splits[number]),
        "annotated": annotated,
        "found": found,
        "usable": usable,
        "listed": listed,
        "excluded": annotated - usable,
        "reasons": dict(reasons.most_common()),
        "damaged_but_usable": damaged,
        "rotated": rotated,
        "frames": {"min": int(frames.min()), "median": int(np.median(frames)), "max": int(frames.max())}
        if usable
        else None,
        "fps": _most_common_rates(videos, number),
        "sizes": _most_common_sizes(videos, number),
        "classes_without_video": [videos.class_names[label] for (label,) in labels],
    }


def _most_common_rates(videos: Videos, split: int) -> dict[str, int]:
    query = "SELECT fps, count(*) FROM outcomes WHERE usable AND split = ? GROUP BY fps ORDER BY min(number)"
    rates = collections.Counter[float]()
    for fps, count in videos.db.execute(query, (split,)):
        rates[float(np.round(float(np.float32(fps)), 2))] += count
    return {f"{rate:g}": count for rate, count in rates.most_common(5)}


def _most_common_sizes(videos: Videos, split: int) -> dict[str, int]:
    query = """
        SELECT width, height, count(*) FROM outcomes WHERE usable AND split = ?
        GROUP BY width, height ORDER BY count(*) DESC, min(number) LIMIT 5"""
    return {f"{width}x{height}": count for width, height, count in videos.db.execute(query, (split,))}


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
