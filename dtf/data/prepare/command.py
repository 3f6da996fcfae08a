"""The command line of `python -m dtf.data.prepare`, and the steps of a run in their order."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from dtf.data.decode import check_pyav
from dtf.data.lists import raise_faults
from dtf.data.pool import Stop, num_cores
from dtf.data.prepare.annotation_files import read_annotations
from dtf.data.prepare.check import remove_parts, run
from dtf.data.prepare.jobs import PRESETS, Encoding
from dtf.data.prepare.journal import open_journal
from dtf.data.prepare.results import table, write_results
from dtf.data.prepare.rows import Videos
from dtf.data.prepare.scan import LISTS, Scan
from dtf.data.sets.data_set import DATA_SETS, DataSet
from dtf.text import (
    as_started,
    degrade_output,
    markup,
    printable,
    printable_lines,
    quiet_on_closed_pipe,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 error, 2 wrong arguments, 130 interrupted."""
    degrade_output()
    with quiet_on_closed_pipe():
        return _run(arguments)
    return 1


def _run(arguments: list[str] | None) -> int:
    args = _parser().parse_args(arguments)
    try:
        prepare(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except sqlite3.Error as error:
        print(
            f"error: temporary rows cannot be kept ({error}); make room for temporary files", file=sys.stderr
        )
        return 1
    except (ValueError, Stop, OSError, RuntimeError) as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=as_started("python -m dtf.data.prepare"),
        description="Check a downloaded data set and write the lists that training reads.",
        epilog=as_started("Train with the result: python train.py data=k400 data.root=ROOT"),
    )
    sets = parser.add_subparsers(dest="dataset", required=True, metavar="|".join(DATA_SETS))
    for name, data_set in DATA_SETS.items():
        sub = sets.add_parser(
            name,
            help=data_set.title,
            description=f"{data_set.title}: match its annotations with the videos below ROOT, check every "
            "video and write ROOT/lists.",
            epilog="Videos may lie in any folders below ROOT; their names must be like "
            f"{data_set.example} (any usual ending), or folders of that name with JPEG frames or an LMDB.",
        )
        _add_arguments(sub, data_set)
    return parser


def _add_arguments(sub: argparse.ArgumentParser, data_set: DataSet) -> None:
    sub.add_argument("root", metavar="ROOT", type=Path, help="folder of the data set; becomes data.root")
    _add_annotations(sub.add_argument_group("annotations"), data_set)
    checks = sub.add_argument_group("checks")
    checks.add_argument(
        "--check",
        choices=("quick", "full"),
        default="quick",
        help="decode the first, middle and last frame of each video (default), or every frame",
    )
    checks.add_argument(
        "--time-limit", metavar="SECONDS", type=float, default=120.0, help="for one video (default: 120)"
    )
    checks.add_argument(
        "--workers", metavar="N", type=int, default=num_cores(), help="processes (default: one per core)"
    )
    checks.add_argument(
        "--retry-failed", action="store_true", help="check again what an earlier run has excluded"
    )
    _add_copy(sub.add_argument_group("smaller copy"))


def _add_annotations(files: argparse._ArgumentGroup, data_set: DataSet) -> None:
    files.add_argument(
        "--annotations",
        metavar="DIR",
        type=Path,
        help="folder of the annotation files (default: ROOT, ROOT/annotations or ROOT/labels)",
    )
    for split in data_set.official:
        files.add_argument(
            f"--{split}",
            metavar="FILE",
            type=Path,
            help=f"annotation file of {split}, or a list of `path label` or `path num_frames label` lines",
        )
    for role, text in data_set.options.items():
        files.add_argument(f"--{role}", metavar="FILE", type=Path, help=text)
    files.add_argument(
        "--splits",
        metavar="A,B",
        help="splits to prepare (default: all that have labels and an annotation file)",
    )
    files.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave faulty rows of the annotations out (they are in the report) instead of stopping",
    )


def _add_copy(copy: argparse._ArgumentGroup) -> None:
    defaults = Encoding(256)
    copy.add_argument(
        "--resize",
        metavar="PIXELS",
        type=int,
        help="re-encode to this short side (H.264, no audio); smaller videos are copied as they are",
    )
    copy.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the copy and its lists (default: ROOT_PIXELS)"
    )
    copy.add_argument(
        "--keyframe-distance",
        metavar="FRAMES",
        type=int,
        default=defaults.keyframe_distance,
        help=f"longest distance of key frames (default: {defaults.keyframe_distance})",
    )
    copy.add_argument(
        "--crf",
        metavar="0..51",
        type=int,
        default=defaults.crf,
        help=f"quality, lower is better and larger (default: {defaults.crf})",
    )
    copy.add_argument(
        "--preset",
        default=defaults.preset,
        choices=PRESETS,
        help=f"effort of the encoder (default: {defaults.preset})",
    )


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line says.

    Args:
        args: as parsed.

    Returns:
        The report, as written to `report.json`.

    Raises:
        ValueError, Stop, OSError: one line each, or one per fault of the annotations.
    """
    console = Console(stderr=True)
    data_set = DATA_SETS[args.dataset]
    check_pyav()
    root = Path(os.path.abspath(args.root))
    encoding = _check_arguments(args, root)
    out = Path(os.path.abspath(args.out or f"{root}_{args.resize}")) if encoding else root
    skipped: list[str] = []
    annotated, files = read_annotations(args, data_set, root, skipped)
    notes = list(annotated.notes)
    if len(annotated.class_names) != data_set.num_classes:
        notes.append(f"{len(annotated.class_names)} classes, {data_set.title} has {data_set.num_classes}")
    for note in notes:
        console.print(f"note: {markup(note)}", highlight=False)

    with contextlib.closing(Videos(annotated)) as videos:
        scan = Scan(videos, data_set)
        scan.run(root, skip=out)
        num_found = videos.num_found
        if not num_found:
            raise ValueError(
                f"{root}: holds none of the {len(videos)} annotated videos (looked for names like "
                f"{data_set.example})"
            )
        settings = {"dataset": args.dataset, "resize": dataclasses.asdict(encoding) if encoding else None}
        with open_journal(videos, out / LISTS, settings):
            if encoding:
                remove_parts(out)
            if args.retry_failed:
                videos.forget_excluded()
            run(videos, args, root, out, encoding, console)
            report = write_results(videos, scan, out, notes, skipped, args, files)
    console.print(table(report))
    console.print(f"lists and report: {markup(out / LISTS)}", highlight=False)
    if not any(row["usable"] for row in report["splits"].values()):
        raise ValueError(f"none of the {num_found} videos can be used; {out / LISTS}/excluded.csv says why")
    return report


def _check_arguments(args: argparse.Namespace, root: Path) -> Encoding | None:
    faults = []
    if not root.is_dir():
        faults.append(f"ROOT {printable(str(root))} is not a folder")
    if args.workers < 1:
        faults.append(f"--workers must be at least 1, got {args.workers}")
    if not args.time_limit > 0:
        faults.append(f"--time-limit must be positive, got {args.time_limit:g}")
    if args.resize is not None and args.resize < 16:
        faults.append(f"--resize must be at least 16 pixels, got {args.resize}")
    if args.keyframe_distance < 1:
        faults.append(f"--keyframe-distance must be at least 1, got {args.keyframe_distance}")
    if not 0 <= args.crf <= 51:
        faults.append(f"--crf must lie in 0..51, got {args.crf}")
    if args.out is not None and args.resize is None:
        faults.append("--out is the folder of a smaller copy and needs --resize")
    if args.out is not None and os.path.abspath(args.out) == str(root):
        faults.append("--out must be another folder than ROOT")
    raise_faults("arguments", faults)
    if args.resize is None:
        return None
    return Encoding(args.resize, args.keyframe_distance, args.crf, args.preset)
