"""Diving48: its annotations, version 1 or 2 (version 2 has cleaner labels).

Format: Li et al., "RESOUND: Towards Action Recognition without Representation Bias" (ECCV 2018).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dtf.data.annotations import AnnotatedSet, Rows, StrPath, iter_json_list, join, kind, parse_json, shown
from dtf.data.lists import raise_faults
from dtf.data.sets.data_set import DataSet, register


def read_diving48(
    vocabulary_file: StrPath, files: Mapping[str, StrPath], faults: list[str] | None = None
) -> AnnotatedSet:
    """Read the JSON files of Diving48, version 1 or 2 (version 2 has cleaner labels).

    All classes of the vocabulary are kept, also one that no video has. The frame range of an entry covers the
    whole video (readers differ in whether its end is included) and is checked, not kept.

    Args:
        vocabulary_file: `Diving48_vocab.json`: four words for each class, its place being its label.
        files: `Diving48_V2_train.json` as "train", `Diving48_V2_test.json` as "val" or "test".
        faults: as for `dtf.data.sets.kinetics.read_kinetics`.

    Raises:
        ValueError: as there; always when the vocabulary is faulty.
    """
    found = [] if faults is None else faults
    class_names = _read_vocabulary(vocabulary_file)
    rows: dict[str, Rows] = {}
    for split, path in files.items():
        read = rows[split] = Rows(os.path.basename(path))
        for line, entry in iter_json_list(path, found):
            where = f"{read.source} line {line}"
            if not isinstance(entry, dict) or "vid_name" not in entry:
                found.append(f"{where}: expected an object with vid_name, got {kind(entry)}")
                continue
            name, label = entry["vid_name"], entry.get("label")
            start, end = entry.get("start_frame", 0), entry.get("end_frame", 1)
            # The YouTube id may itself contain underscores: only the last one separates.
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,32}_[0-9]{5}", name):
                found.append(f"{where}: vid_name must be <YouTube id>_<5 digits>, got {shown(name)}")
                continue
            where += f" ({name})"
            if type(label) is not int:
                found.append(f"{where}: label must be a whole number, got {shown(label)}")
            elif not 0 <= label < len(class_names):
                found.append(f"{where}: label {shown(label)} is out of range 0..{len(class_names) - 1}")
            elif not (type(start) is type(end) is int and 0 <= start < end):
                found.append(f"{where}: frames {shown(start)} to {shown(end)} are no range")
            else:
                read.add(name, label, line)
    splits = join(rows, {}, found)
    if faults is None:
        raise_faults("annotations", found)
    return AnnotatedSet(class_names, splits)


def _read_vocabulary(path: StrPath) -> list[str]:
    source = os.path.basename(path)
    entries = parse_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{source}: expected a list of classes, each a list of four words")
    faults: list[str] = []
    names: list[str] = []
    seen: dict[str, int] = {}
    for label, words in enumerate(entries):
        fine = isinstance(words, list) and words and all(isinstance(w, str) and w.strip() for w in words)
        name = " ".join(w.strip() for w in words) if fine else ""
        if not name or not name.isprintable():
            faults.append(f"class {label}: expected four words, got {kind(words)}")
        elif name in seen:
            faults.append(f"class {label} is the same as class {seen[name]}: {shown(name)}")
        seen.setdefault(name, label)
        names.append(name)
    raise_faults(source, faults)
    return names


def _read(splits: Mapping[str, Path], files: Mapping[str, Path], faults: list[str]) -> AnnotatedSet:
    annotated = read_diving48(files["labels"], splits, faults)
    if any("_V2_" not in path.name for path in splits.values()):
        annotated.notes.append("not the labels of version 2, which are cleaner")
    return annotated


register(
    "diving48",
    DataSet(
        title="Diving48",
        num_classes=48,
        official={"train": 15_027, "test": 1_970},
        files={
            "labels": r"Diving48_vocab\.json",
            "train": r"Diving48_V2_train\.json",
            "test": r"Diving48_V2_test\.json",
        },
        options={"labels": "Diving48_vocab.json"},
        required="labels",
        example="_8Vy3dlHg2w_00000.mp4",
        read=_read,
        read_class_names=_read_vocabulary,
    ),
)
