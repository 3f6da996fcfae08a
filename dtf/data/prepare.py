"""`python -m dtf.data.prepare k400|ssv2|diving48 ROOT`: from a downloaded data set to checked lists.

Reads the official annotations (or `path label` lists), finds their videos below ROOT whatever the folders are
called, opens each in a process of its own, and writes ROOT/lists: `train.txt`, `val.txt`, ... (`path label`,
paths relative to ROOT), `classes.txt`, `report.json`, `excluded.csv`. `--resize` makes a smaller copy on
the way and writes the lists there. Every result goes to `lists/journal.jsonl` at once: a run that was
stopped, in whatever way, goes on where it was when started again.

Array letter: N videos of all splits together.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dtf.data import annotations as ann
from dtf.data import bounds
from dtf.data.decode import check_pyav
from dtf.data.jobs import PART, Encoding, Probe, Resize, probe, resize
from dtf.data.lists import VIDEO_EXTENSIONS, is_video_name, raise_faults, read_list
from dtf.data.pool import Lost, Stop, run_isolated
from dtf.text import cell, degrade_output, markup, printable, printable_lines

try:
    import fcntl
except ImportError:  # Windows: two runs at once on one folder are then not noticed
    fcntl = None  # type: ignore[assignment]

LISTS = "lists"
SPLITS = ("train", "val", "test")
_JOURNAL = "journal.jsonl"
_EXAMPLES = 20
_REASONS = 50  # kinds of reasons that are counted apart

# What became of a video.
_MISSING, _USABLE, _EXCLUDED = 0, 1, 2


@dataclass(frozen=True)
class DataSet:
    """What is known about a data set before looking at it.

    Attributes:
        title: its name.
        num_classes: classes.
        official: videos of each split by the official annotations.
        files: for each annotation file a pattern of its name.
        example: name of a video file, for messages.
        key: the name of a video as the annotations have it, from the name of a file without its ending.
    """

    title: str
    num_classes: int
    official: Mapping[str, int]
    files: Mapping[str, str]
    example: str
    key: Callable[[str], str]


def _kinetics_key(stem: str) -> str:
    # Copies differ in the number of digits of the seconds.
    match = re.fullmatch(r"(.{11})_([0-9]{1,6})_([0-9]{1,6})", stem)
    return f"{match[1]}_{int(match[2]):06d}_{int(match[3]):06d}" if match else stem


DATA_SETS = {
    "k400": DataSet(
        "Kinetics-400",
        400,
        {"train": 246_534, "val": 19_906, "test": 38_685},  # train: as usually quoted
        {
            "train": r"(.*[-_])?train\.csv",
            "val": r"(.*[-_])?val(idate|idation)?\.csv",
            "test": r"(.*[-_])?test\.csv",
        },
        "-3B32lodo2M_000059_000069.mp4",
        _kinetics_key,
    ),
    "ssv2": DataSet(
        "Something-Something v2",
        174,
        {"train": 168_913, "val": 24_777, "test": 27_157},
        {
            "labels": r"(something-something-v2-)?labels\.json",
            "train": r"(something-something-v2-)?train\.json",
            "val": r"(something-something-v2-)?val(idation)?\.json",
            "test": r"(something-something-v2-)?test\.json",
            "answers": r"(something-something-v2-)?test-answers\.csv",
        },
        "78687.webm",
        str,
    ),
    "diving48": DataSet(
        "Diving48",
        48,
        {"train": 15_027, "test": 1_970},
        {
            "labels": r"Diving48_vocab\.json",
            "train": r"Diving48_V2_train\.json",
            "test": r"Diving48_V2_test\.json",
        },
        "_8Vy3dlHg2w_00000.mp4",
        str,
    ),
}


# ---- command line ------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 error, 2 wrong arguments, 130 interrupted."""
    args = _parser().parse_args(arguments)
    degrade_output()
    try:
        prepare(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, Stop, OSError, RuntimeError) as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dtf.data.prepare",
        description="Check a downloaded data set and write the lists that training reads.",
        epilog="Train with the result: python train.py data=k400 data.root=ROOT",
    )
    sets = parser.add_subparsers(dest="dataset", required=True, metavar="k400|ssv2|diving48")
    for name, data_set in DATA_SETS.items():
        sub = sets.add_parser(
            name,
            help=data_set.title,
            description=f"{data_set.title}: match its annotations with the videos below ROOT, check every "
            "video and write ROOT/lists.",
            epilog="Videos may lie in any folders below ROOT; their names must be like "
            f"{data_set.example} (any usual ending), or folders of that name with JPEG frames or an LMDB.",
        )
        _add_arguments(sub, name, data_set)
    return parser


def _add_arguments(sub: argparse.ArgumentParser, name: str, data_set: DataSet) -> None:
    sub.add_argument("root", metavar="ROOT", type=Path, help="folder of the data set; becomes data.root")
    files = sub.add_argument_group("annotations")
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
    if name == "ssv2":
        files.add_argument("--labels", metavar="FILE", type=Path, help="something-something-v2-labels.json")
        files.add_argument("--answers", metavar="FILE", type=Path, help="test-answers.csv: labels of test")
    elif name == "diving48":
        files.add_argument("--labels", metavar="FILE", type=Path, help="Diving48_vocab.json")
    else:
        files.add_argument(
            "--labels",
            metavar="FILE",
            type=Path,
            help="class names by label, one per line (default: those of the training annotations, sorted)",
        )
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
        "--workers", metavar="N", type=int, default=_num_cores(), help="processes (default: one per core)"
    )
    checks.add_argument(
        "--retry-failed", action="store_true", help="check again what an earlier run has excluded"
    )
    copy = sub.add_argument_group("smaller copy")
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
        choices=(
            "ultrafast",
            "superfast",
            "veryfast",
            "faster",
            "fast",
            "medium",
            "slow",
            "slower",
            "veryslow",
        ),
        help=f"effort of the encoder (default: {defaults.preset})",
    )


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# ---- the run -----------------------------------------------------------------------------------------------


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

    videos = Videos(data_set, annotated)
    videos.scan(root, skip=out)
    if not videos.num_found:
        raise ValueError(
            f"{root}: holds none of the {len(videos)} annotated videos (looked for names like "
            f"{data_set.example})"
        )
    settings = {"dataset": args.dataset, "resize": dataclasses.asdict(encoding) if encoding else None}
    with open_journal(out / LISTS / _JOURNAL, settings) as journal:
        if encoding:
            _remove_parts(out)
        journal.load(videos, retry_failed=args.retry_failed)
        _run(videos, journal, args, root, out, encoding, console)
        videos.check_folders()
        report = _write_results(videos, journal, out, notes, skipped, args, files)
    console.print(_table(report))
    console.print(f"lists and report: {markup(out / LISTS)}", highlight=False)
    if not any(row["usable"] for row in report["splits"].values()):
        raise ValueError(
            f"none of the {videos.num_found} videos can be used; {out / LISTS}/excluded.csv says why"
        )
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


def read_annotations(
    args: argparse.Namespace, data_set: DataSet, root: Path, skipped: list[str]
) -> tuple[ann.AnnotatedSet, dict[str, Path]]:
    """Find and read the annotation files.

    Args:
        args: as parsed.
        data_set: which.
        root: its folder.
        skipped: takes the faults of rows that are left out (`--skip-bad-rows`).

    Returns:
        The records of the splits to prepare, and the files they come from by role.

    Raises:
        ValueError: files are missing, ambiguous or faulty.
    """
    files = _find_files(args, data_set, root)
    chosen = args.splits.split(",") if args.splits else [s for s in data_set.official if s in files]
    unknown = [s for s in chosen if s not in data_set.official]
    absent = [s for s in chosen if s in data_set.official and s not in files]
    if unknown:
        raise ValueError(
            f"--splits: {data_set.title} has {', '.join(data_set.official)}, not {', '.join(unknown)}"
        )
    if absent or not chosen:
        what = ", ".join(absent) or "any split"
        wanted = ", ".join(data_set.files[s] for s in absent or data_set.official)
        raise ValueError(
            f"no annotation file of {what} found (a name like {wanted}); --annotations DIR says where"
        )
    splits = {split: files[split] for split in chosen}
    faults: list[str] = []
    lists = [split for split, path in splits.items() if _is_list(path)]
    if lists and len(lists) < len(splits):
        raise ValueError(
            f"{', '.join(lists)}: is a list of paths, but the other splits have official annotations"
        )
    if lists:
        names = _read_class_list(args, files, data_set)
        annotated = ann.read_path_lists(splits, names, faults)
    elif args.dataset == "k400":
        names = _read_class_list(args, files, data_set) if "labels" in files else None
        annotated = ann.read_kinetics(splits, names, faults)
    else:
        if "labels" not in files:
            raise ValueError(f"no file {data_set.files['labels']} found; --labels FILE says where it is")
        if args.dataset == "ssv2":
            annotated = ann.read_something(files["labels"], splits, files.get("answers"), faults)
        else:
            annotated = ann.read_diving48(files["labels"], splits, faults)
            if any("_V2_" not in path.name for path in splits.values()):
                annotated.notes.append("not the labels of version 2, which are cleaner")
    if not args.skip_bad_rows:
        raise_faults("annotations", faults)
    skipped.extend(faults)
    for split in list(annotated.splits):
        if args.splits is None and (annotated.splits[split].labels == ann.WITHHELD).all():
            del annotated.splits[split]  # a test split without labels serves no one but who asks for it
            del files[split]
    return annotated, files


def _find_files(args: argparse.Namespace, data_set: DataSet, root: Path) -> dict[str, Path]:
    folders = [args.annotations] if args.annotations else [root, root / "annotations", root / "labels"]
    names = [(folder, name) for folder in folders if folder.is_dir() for name in sorted(os.listdir(folder))]
    files: dict[str, Path] = {}
    for role in [*data_set.files, *([] if "labels" in data_set.files else ["labels"])]:
        given = getattr(args, role, None)
        pattern = data_set.files.get(role)
        if given is not None:
            files[role] = given
        elif pattern is not None:
            found = [folder / name for folder, name in names if re.fullmatch(pattern, name, re.IGNORECASE)]
            if len(found) > 1:
                both = ", ".join(printable(str(path)) for path in found)
                raise ValueError(f"several annotation files for {role}: {both}; choose with --{role} FILE")
            if found:
                files[role] = found[0]
    return files


def _is_list(path: Path) -> bool:
    return path.suffix.lower() != ".json" and not ann.is_kinetics_csv(path)


def _read_class_list(
    args: argparse.Namespace, files: Mapping[str, Path], data_set: DataSet
) -> list[str] | None:
    if "labels" not in files:
        return None
    if args.dataset == "ssv2":
        return ann.read_something(files["labels"], {}).class_names
    if args.dataset == "diving48":
        return ann.read_diving48(files["labels"], {}).class_names
    names = [
        line.strip()
        for line in bounds.read_regular(files["labels"]).decode("utf-8-sig").split("\n")
        if line.strip()
    ]
    twice = [name for name, count in collections.Counter(map(ann.class_key, names)).items() if count > 1]
    if twice or not names:
        problem = f"repeats {', '.join(twice[:5])}" if twice else "is empty"
        raise ValueError(f"{files['labels'].name}: {problem}; expected one class name per line")
    return [ann.class_key(name) for name in names]


# ---- matching annotations and files ------------------------------------------------------------------------


class Videos:
    """The annotated videos, what lies on disk of them and what became of them: some 80 bytes each.

    Attributes:
        split_of: (N,) int8, position in `splits`.
        ids, labels: (N,) as in `Annotations`.
        state: (N,) int8, one of missing, usable, excluded.
        line_at: (N,) int64, where its latest line of the journal begins.
        size, time, full: (N,) of its file when it was looked at, and whether every frame was decoded.
        frames, fps, width, height, rotation, damaged, ending: (N,) as found out.
        extra, doubles, misplaced: counts and examples of files that are not annotated, lie at two places,
            or lie in the folder of another class.
    """

    def __init__(self, data_set: DataSet, annotated: ann.AnnotatedSet) -> None:
        self.data_set = data_set
        self.class_names = annotated.class_names
        self.splits = list(annotated.splits)
        parts = list(annotated.splits.values())
        self.ids = np.concatenate([a.ids for a in parts])
        self.labels = np.concatenate([a.labels for a in parts])
        self.split_of = np.repeat(np.arange(len(parts), dtype=np.int8), [len(a) for a in parts])
        self._order = np.argsort(self.ids)
        count = len(self.ids)
        self._folders: list[str] = []
        self._folder_of = np.full(count, -1, np.int32)
        self._ending_of = np.zeros(count, np.int8)
        self._endings = ["", *sorted(VIDEO_EXTENSIONS)]
        self._odd_names: dict[int, str] = {}
        self.state = np.zeros(count, np.int8)
        self.line_at = np.full(count, -1, np.int64)
        self.size = np.full(count, -1, np.int64)
        self.time = np.full(count, -1, np.int64)
        self.full = np.zeros(count, bool)
        self.ending = np.zeros(count, np.int8)
        self.frames = np.zeros(count, np.int32)
        self.fps = np.zeros(count, np.float32)
        self.width = np.zeros(count, np.int32)
        self.height = np.zeros(count, np.int32)
        self.rotation = np.zeros(count, np.int16)
        self.damaged = np.zeros(count, bool)
        self.extra = _Tally()
        self.doubles = _Tally()
        self.misplaced = _Tally()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_found(self) -> int:
        """Videos with a file."""
        return int(self.has_file.sum())

    def find(self, name: str) -> int:
        """Number of the video of this name, -1 if there is none."""
        try:
            key = name.encode("ascii")
        except UnicodeEncodeError:
            return -1
        if len(key) > self.ids.itemsize:  # numpy would cut it
            return -1
        place = int(np.searchsorted(self.ids, key, sorter=self._order))
        if place == len(self.ids) or self.ids[self._order[place]] != key:
            return -1
        return int(self._order[place])

    @property
    def has_file(self) -> np.ndarray:
        """(N,) bool."""
        return self._folder_of >= 0

    def is_found(self, i: int) -> bool:
        """Whether video i has a file."""
        return bool(self._folder_of[i] >= 0)

    def found(self) -> np.ndarray:
        """Numbers of the videos with a file."""
        return np.flatnonzero(self.has_file)

    def path(self, i: int) -> str:
        """Path of video i relative to the root."""
        ending = self._endings[self._ending_of[i]]
        name = self._odd_names.get(i) or self.ids[i].decode() + ending
        return os.path.join(self._folders[self._folder_of[i]], name)

    def listed_path(self, i: int) -> str:
        """Path of video i for the lists: that of its copy where one was made."""
        path = self.path(i)
        return os.path.splitext(path)[0] + self._endings[self.ending[i]] if self.ending[i] else path

    def take(self, i: int, record: Mapping[str, Any], line_at: int) -> None:
        """Note what a line of the journal says about video i."""
        self.line_at[i] = line_at
        self.size[i], self.time[i], self.full[i] = record["size"], record["time"], record["full"]
        self.state[i] = _EXCLUDED if "error" in record else _USABLE
        if "error" in record:
            return
        for name in ("frames", "fps", "width", "height", "rotation", "damaged"):
            getattr(self, name)[i] = record[name]
        self.ending[i] = self._endings.index(record["ending"]) if "ending" in record else 0

    def scan(self, root: Path, skip: Path) -> None:
        """Look through all folders below root; links to folders are followed, each folder is entered once.

        Args:
            root: where to look.
            skip: folder of a copy that must not be taken for the original.
        """
        seen: set[tuple[int, int]] = set()
        todo = [""]
        while todo:
            folder = todo.pop()
            status = os.stat(os.path.join(root, folder))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            number = len(self._folders)
            self._folders.append(folder)
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if entry.name.startswith("."):
                        continue
                    path = os.path.join(folder, entry.name)
                    if entry.is_dir():
                        if path == LISTS or os.path.join(root, path) == str(skip):
                            continue
                        i = self.find(self.data_set.key(entry.name))
                        if i >= 0 and _holds_frames(entry.path):
                            self._add(i, number, entry.name)
                        else:
                            todo.append(path)
                    elif is_video_name(entry.name):
                        stem = os.path.splitext(entry.name)[0]
                        i = self.find(self.data_set.key(stem))
                        if i >= 0:
                            self._add(i, number, entry.name)
                        else:
                            self.extra.add(path)

    def _add(self, i: int, folder: int, name: str) -> None:
        if self._folder_of[i] >= 0:
            old = self.path(i)
            new = os.path.join(self._folders[folder], name)
            kept = min(old, new, key=lambda path: self._preference(i, path))
            self.doubles.add(new if kept == old else old)
            if kept == old:
                return
        stem, ending = os.path.splitext(name)
        self._folder_of[i] = folder
        self._odd_names.pop(i, None)
        if ending in self._endings and stem == self.ids[i].decode():
            self._ending_of[i] = self._endings.index(ending)
        else:
            self._odd_names[i] = name

    def _preference(self, i: int, path: str) -> tuple[Any, ...]:
        """Which of two files of one video is taken: the smaller answer."""
        folders = [ann.class_key(part).lower() for part in Path(path).parts[:-1]]
        split, label = self.splits[self.split_of[i]], int(self.labels[i])
        return (
            not any("replacement" in part for part in folders),  # offered for broken files of Kinetics
            not any(split in part.split(" ") for part in folders),
            label >= 0 and self.class_names[label].lower() not in folders,
            path,
        )

    def check_folders(self) -> None:
        """Count the videos that lie in the folder of another class."""
        label_of = {name: label for label, name in enumerate(self.class_names)}
        label_of_folder = np.array(
            [label_of.get(ann.class_key(os.path.basename(f)), -1) for f in self._folders]
        )
        found = self.found()
        given = label_of_folder[self._folder_of[found]]
        for i in found[(given >= 0) & (self.labels[found] >= 0) & (given != self.labels[found])]:
            self.misplaced.add(self.path(int(i)))


class _Tally:
    """A count with some examples."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []

    def add(self, path: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(printable(path))

    def report(self) -> dict[str, Any]:
        return {"count": self.count, "examples": self.examples}


def _holds_frames(folder: str) -> bool:
    """Whether a folder is one video (an LMDB, JPEG images), as against a folder of videos of such a name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "data.mdb" or entry.name.lower().endswith((".jpg", ".jpeg")):
                return True
            if entry.is_dir() or is_video_name(entry.name):
                return False
    return True  # empty: to be reported as a video without frames


# ---- journal -----------------------------------------------------------------------------------------------


class Journal:
    """What was found out about each video, one JSON line each, in the order it was found out.

    A line is written whole by one call, so that a killed run leaves at most a torn last line; it is cut off.

    Args:
        file: opened for reading and appending.
        name: for messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Check or write the first line.

        Raises:
            ValueError: the journal belongs to a run with other settings.
        """
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            self._file.truncate(0)
            self.append({"journal": 1, **settings})
            return
        header = _parse_line(first)
        for key, value in settings.items():
            if header.get(key) != value:
                raise ValueError(
                    f"{self._name}: belongs to a run with {key} {json.dumps(header.get(key))}, this one has "
                    f"{json.dumps(value)}; choose another --out or delete that folder"
                )

    def load(self, videos: Videos, retry_failed: bool) -> None:
        """Take over what an earlier run has found out.

        Args:
            videos: takes it.
            retry_failed: forget what was excluded.
        """
        position = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(position)
                break
            record = _parse_line(line)
            i = videos.find(str(record.get("name", "")))
            if i >= 0 and videos.is_found(i) and record.get("path") == videos.path(i):
                with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):  # a damaged line
                    videos.take(i, record, position)
            position += len(line)
        if retry_failed:
            failed = videos.state == _EXCLUDED
            videos.state[failed] = _MISSING
            videos.size[failed] = -1
        self._file.seek(0, os.SEEK_END)

    def append(self, record: Mapping[str, Any]) -> int:
        """Write a record; returns where its line begins."""
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record).encode() + b"\n")
        return start

    def record_at(self, position: int) -> dict[str, Any]:
        """The record whose line begins at a position."""
        self._file.seek(position)
        return _parse_line(self._file.readline())


@contextlib.contextmanager
def open_journal(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Open the journal of a data set for this process alone.

    Raises:
        ValueError: another process has it, or it belongs to a run with other settings.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as raw:
        if fcntl is not None:
            try:
                fcntl.flock(raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{path}: another run is working on this folder") from error
        journal = Journal(raw, str(path))
        journal.begin(settings)
        yield journal
        os.fsync(raw.fileno())


def _parse_line(line: bytes) -> dict[str, Any]:
    """The record of a line, {} when it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


# ---- checking and copying ----------------------------------------------------------------------------------


def _run(
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


def _remove_parts(out: Path) -> None:
    """Remove what a killed run was about to write."""
    for folder, _, names in os.walk(out):
        for name in names:
            if name.startswith(".") and name.endswith(PART):
                os.unlink(os.path.join(folder, name))


def _is_known(videos: Videos, i: int, stamp: tuple[int, int], full: bool, out: Path | None) -> bool:
    """Whether an earlier run has looked at this very file as thoroughly as this run would."""
    if videos.state[i] == _MISSING or (videos.size[i], videos.time[i]) != stamp:
        return False
    if videos.state[i] == _EXCLUDED:
        return True
    return bool(videos.full[i] or not full) and (out is None or os.path.exists(out / videos.listed_path(i)))


def _unlistable(path: str) -> str | None:
    if path != path.strip() or "\n" in path or "\r" in path:
        return "has a line break or an outer blank in its path, which cannot stand in a list"
    return None


# ---- results -----------------------------------------------------------------------------------------------


def _write_results(
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
        chosen = np.flatnonzero((videos.split_of == number) & (videos.state == _USABLE))
        labelled = videos.labels[chosen] != ann.WITHHELD
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
        "skipped_rows": {"count": len(skipped), "examples": skipped[:_EXAMPLES]},
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
    yield _csv_row("split", "name", "path", "reason")
    for i in np.flatnonzero(videos.state != _USABLE).tolist():
        split = videos.splits[videos.split_of[i]]
        if videos.state[i] == _MISSING:
            path, reason = "", "missing"
        else:
            path, reason = videos.path(i), str(journal.record_at(int(videos.line_at[i])).get("error"))
        if reason in reasons[split] or len(reasons[split]) < _REASONS:
            reasons[split][reason] += 1
        else:
            reasons[split]["other"] += 1
        yield _csv_row(split, videos.ids[i].decode(), path, reason)


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
        "listed": int((videos.labels[chosen] != ann.WITHHELD).sum()),
        "excluded": int(mine.sum()) - len(chosen),
        "reasons": dict(reasons.most_common()),
        "damaged_but_usable": int(videos.damaged[chosen].sum()),
        "rotated": int((videos.rotation[chosen] != 0).sum()),
        "frames": {"min": int(frames.min()), "median": int(np.median(frames)), "max": int(frames.max())}
        if len(frames)
        else None,
        "fps": {f"{rate:g}": count for rate, count in rates.most_common(5)},
        "sizes": {f"{w}x{h}": count for (w, h), count in sizes.most_common(5)},
        "classes_without_video": [videos.class_names[k] for k in np.setdiff1d(labels, present)][:_EXAMPLES],
    }


def _table(report: Mapping[str, Any]) -> Table:
    table = Table("split", "official", "annotated", "found", "usable", "excluded", "main reasons")
    for split, row in report["splits"].items():
        reasons = "\n".join(
            f"{count} {printable(reason)}" for reason, count in list(row["reasons"].items())[:5]
        )
        counts = (str(row[name]) for name in ("official", "annotated", "found", "usable", "excluded"))
        table.add_row(split, *counts, Text(reasons))
    return table


def _csv_row(*fields: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(cell, fields))
    return line.getvalue()


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears complete or not at all; odd bytes of file names are kept."""
    part = path.with_name(f".{path.name}{PART}")
    with open(part, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
