"""Kinetics: its annotations (400, 600 and 700 have one format) and the names of its files.

Format: Kay et al., "The Kinetics Human Action Video Dataset" (2017).
"""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dtf.data.annotations import (
    WITHHELD,
    AnnotatedSet,
    Rows,
    StrPath,
    annotation_text,
    class_key,
    join,
    read_class_list,
    shown,
    unknown_class,
)
from dtf.data.lists import raise_faults
from dtf.data.sets.data_set import DataSet, register

_MAX_CLIP_SECONDS = 999_999  # six digits in the file names


def read_kinetics(
    files: Mapping[str, StrPath],
    class_names: Sequence[str] | None = None,
    faults: list[str] | None = None,
) -> AnnotatedSet:
    """Read the CSV files of Kinetics (400, 600 and 700 have one format).

    The columns are found by the header `label,youtube_id,time_start,time_end,split,is_cc`; the last two are
    not used, a file without `label` is a test split. A video's name is `<id>_<start>_<end>`, seconds as six
    digits.

    Args:
        files: CSV file of "train", "val" and "test", whichever there are.
        class_names: names in the order of their labels. None: the sorted names in the training file (without
            one: in all files).
        faults: takes a line for each fault, and the rows concerned are left out. None: faults raise.

    Returns:
        The records; `notes` tells when one YouTube video occurs with several times.

    Raises:
        ValueError: a file is unreadable, or (`faults` is None) there are faults; all of them are named.
    """
    found = [] if faults is None else faults
    names: list[str] = []  # as met, to number the labels until all classes are known
    number_of: dict[str, int] = {}
    rows = {split: _read_kinetics_rows(path, names, number_of, found) for split, path in files.items()}
    if class_names is None:
        sources = ["train"] if "train" in rows and len(rows["train"].labels) else list(rows)
        used = {int(n) for split in sources for n in set(rows[split].labels) if n != WITHHELD}
        known = sorted(names[n] for n in used)
    else:
        known = [class_key(name) for name in class_names]
    label_of = {name: label for label, name in enumerate(known)}
    label_of_number = np.array([label_of.get(name, WITHHELD) for name in names] + [WITHHELD], dtype=np.int32)
    keep: dict[str, np.ndarray] = {}
    for split, read in rows.items():
        numbers = np.array(read.labels, dtype=np.int64)
        labels = label_of_number[numbers]
        unknown = (labels == WITHHELD) & (numbers != WITHHELD)
        for i in np.flatnonzero(unknown):
            found.append(f"{read.where(int(i))}: {unknown_class(names[numbers[i]], known, found)}")
        read.labels = array("l", labels.tolist())
        keep[split] = ~unknown
    splits = join(rows, keep, found)
    if faults is None:
        raise_faults("annotations", found)
    notes = []
    seen = np.concatenate([a.ids.astype("S11") for a in splits.values()] or [np.array([], "S11")])
    repeats = len(seen) - len(np.unique(seen))
    if repeats:
        notes.append(f"{repeats} clips come from a YouTube video that another clip comes from as well")
    return AnnotatedSet(known, splits, notes)


def _read_kinetics_rows(
    path: StrPath, names: list[str], number_of: dict[str, int], faults: list[str]
) -> Rows:
    rows = Rows(os.path.basename(path))
    faults_before = len(faults)
    columns: dict[str, int] = {}
    for number, line in enumerate(annotation_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{rows.source} line {number}"
        try:
            fields = [part.strip() for part in next(csv.reader([line.rstrip("\r")], strict=True))]
        except csv.Error as error:
            faults.append(f"{where}: is not CSV ({error}): {shown(line)}")
            continue
        if not columns:
            columns = {name.lower(): i for i, name in enumerate(fields)}
            missing = [name for name in ("youtube_id", "time_start", "time_end") if name not in columns]
            if missing:
                faults.append(
                    f"{where}: the header lacks {', '.join(missing)}; expected "
                    f"label,youtube_id,time_start,time_end,split,is_cc, got {shown(line)}"
                )
                return rows
        elif len(fields) != len(columns):
            faults.append(f"{where}: {len(fields)} columns, the header has {len(columns)}: {shown(line)}")
        else:
            fault, name, label = _parse_row(fields, columns)
            if fault:
                faults.append(f"{where}: {fault}")
                continue
            if label is not None and label not in number_of:
                number_of[label] = len(names)
                names.append(label)
            rows.add(name, WITHHELD if label is None else number_of[label], number)
    if not columns:
        faults.append(f"{rows.source}: is empty")
    elif not rows.ids and len(faults) == faults_before:
        faults.append(f"{rows.source}: has no row")
    return rows


def _parse_row(fields: list[str], columns: Mapping[str, int]) -> tuple[str, str, str | None]:
    """(what is wrong with a row or "", name of its video, its class or None where the file has none)."""
    youtube_id = fields[columns["youtube_id"]]
    start, end = (_whole_seconds(fields[columns[name]]) for name in ("time_start", "time_end"))
    label = class_key(fields[columns["label"]]) if "label" in columns else None
    if not re.fullmatch(r"[A-Za-z0-9_-]{11}", youtube_id):
        return f"a YouTube id has 11 letters, digits, - or _, got {shown(youtube_id)}", "", None
    if start is None or end is None or not start < end <= _MAX_CLIP_SECONDS:
        times = f"{shown(fields[columns['time_start']])}, {shown(fields[columns['time_end']])}"
        return f"start and end must be whole seconds with start < end, got {times}", "", None
    if label is not None and not (label and label.isprintable()):
        return f"the class name is empty or unprintable: {shown(label)}", "", None
    return "", f"{youtube_id}_{start:06d}_{end:06d}", label


def _whole_seconds(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,9})(\.0*)?", text)
    return int(match[1]) if match else None


def is_kinetics_csv(path: StrPath) -> bool:
    """Whether a file begins with the header of a Kinetics annotation, rather than being a list of paths."""
    lines = annotation_text(path).split("\n")
    return "youtube_id" in next((line for line in lines if line.strip()), "").lower()


def _read(splits: Mapping[str, Path], files: Mapping[str, Path], faults: list[str]) -> AnnotatedSet:
    class_names = read_class_list(files["labels"]) if "labels" in files else None
    return read_kinetics(splits, class_names, faults)


def _is_annotation(path: Path) -> bool:
    return path.suffix.lower() == ".json" or is_kinetics_csv(path)


def _key(stem: str) -> str:
    # Copies differ in the number of digits of the seconds.
    match = re.fullmatch(r"(.{11})_([0-9]{1,6})_([0-9]{1,6})", stem)
    return f"{match[1]}_{int(match[2]):06d}_{int(match[3]):06d}" if match else stem


register(
    "k400",
    DataSet(
        title="Kinetics-400",
        num_classes=400,
        official={"train": 246_534, "val": 19_906, "test": 38_685},  # train: as usually quoted
        files={
            "train": r"(.*[-_])?train\.csv",
            "val": r"(.*[-_])?val(idate|idation)?\.csv",
            "test": r"(.*[-_])?test\.csv",
        },
        options={
            "labels": "class names by label, one per line "
            "(default: those of the training annotations, sorted)",
        },
        example="-3B32lodo2M_000059_000069.mp4",
        key=_key,
        is_annotation=_is_annotation,
        read=_read,
        read_class_names=read_class_list,
    ),
)
