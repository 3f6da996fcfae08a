"""Something-Something, version 2: its annotations (those of version 1 are different).

Format: Goyal et al., "The 'something something' video database" (ICCV 2017), in the files of version 2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtf.data.annotations import (
    WITHHELD,
    AnnotatedSet,
    Rows,
    StrPath,
    annotation_text,
    class_key,
    iter_json_list,
    join,
    kind,
    parse_json,
    shown,
    unknown_class,
)
from dtf.data.lists import raise_faults, repeated
from dtf.data.sets.data_set import DataSet, register


def read_something(
    labels_file: StrPath,
    files: Mapping[str, StrPath],
    answers_file: StrPath | None = None,
    faults: list[str] | None = None,
) -> AnnotatedSet:
    """Read the JSON files of Something-Something version 2 (those of version 1 are different).

    The class of a video is its template without the square brackets, its number comes from the labels file.
    The test file has ids only.

    Args:
        labels_file: `something-something-v2-labels.json`, class name to number (as text).
        files: JSON file of "train", "val" and "test", whichever there are.
        answers_file: `test-answers.csv` (`id;class name`) of the later releases: labels of the test split.
        faults: as for `dtf.data.sets.kinetics.read_kinetics`.

    Raises:
        ValueError: as there; always when the labels file is faulty.
    """
    found = [] if faults is None else faults
    class_names = _read_label_numbers(labels_file)
    label_of = {class_key(name): label for label, name in enumerate(class_names)}
    answers = _read_answers(answers_file, label_of, class_names, found) if answers_file is not None else {}
    rows: dict[str, Rows] = {}
    for split, path in files.items():
        read = rows[split] = Rows(os.path.basename(path))
        for line, entry in iter_json_list(path, found):
            where = f"{read.source} line {line}"
            if not isinstance(entry, dict) or "id" not in entry:
                found.append(f"{where}: expected an object with an id, got {kind(entry)}")
                continue
            video_id = str(entry["id"])
            template = entry.get("template")
            if not re.fullmatch(r"[0-9]{1,9}", video_id):
                found.append(f"{where}: an id is a number, got {shown(entry['id'])}")
            elif split == "test" and template is None:
                read.add(video_id, answers.get(video_id, WITHHELD), line)
            elif not isinstance(template, str):
                found.append(f"{where} (id {video_id}): has no template, which names its class")
            else:
                name = template.replace("[", "").replace("]", "")
                label = label_of.get(class_key(name))
                if label is None:
                    found.append(f"{where} (id {video_id}): {unknown_class(name, class_names, found)}")
                else:
                    read.add(video_id, label, line)
    splits = join(rows, {}, found)
    if faults is None:
        raise_faults("annotations", found)
    return AnnotatedSet(class_names, splits)


def _read_label_numbers(path: StrPath) -> list[str]:
    """Class names by number from a JSON object {name: number}."""
    source = os.path.basename(path)
    faults: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        faults.extend(f"class {shown(name)} occurs twice" for name in repeated(name for name, _ in pairs))
        return dict(pairs)

    entries = parse_json(path, object_pairs_hook=unique)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'{source}: expected an object {{"class name": "number", ...}}')
    names: list[str | None] = [None] * len(entries)
    keys: dict[str, str] = {}
    for name, number in entries.items():
        text = str(number)
        label = int(text) if isinstance(number, str | int) and re.fullmatch(r"[0-9]{1,6}", text) else -1
        key = class_key(name)
        if not key or not name.isprintable():
            faults.append(f"class name {shown(name)} is empty or unprintable")
        elif key in keys:
            faults.append(
                f"classes {shown(keys[key])} and {shown(name)} are the same but for blanks and quotes"
            )
        elif not 0 <= label < len(names):
            faults.append(f"class {shown(name)}: number {shown(number)} is not in 0..{len(names) - 1}")
        elif names[label] is not None:
            faults.append(f"classes {shown(names[label])} and {shown(name)} have the same number {label}")
        else:
            names[label] = keys[key] = name
    raise_faults(source, faults)
    return [str(name) for name in names]


def _read_answers(
    path: StrPath, label_of: Mapping[str, int], class_names: Sequence[str], faults: list[str]
) -> dict[str, int]:
    answers: dict[str, int] = {}
    source = os.path.basename(path)
    for number, line in enumerate(annotation_text(path).split("\n"), 1):
        if not line.strip():
            continue
        video_id, _, name = line.strip().partition(";")
        label = label_of.get(class_key(name))
        where = f"{source} line {number}"
        if label is None:
            faults.append(f"{where}: expected `id;class name`; {unknown_class(name, class_names, faults)}")
        elif video_id in answers:
            faults.append(f"{where}: id {shown(video_id)} was already given")
        else:
            answers[video_id] = label
    return answers


def _read(splits: Mapping[str, Path], files: Mapping[str, Path], faults: list[str]) -> AnnotatedSet:
    return read_something(files["labels"], splits, files.get("answers"), faults)


register(
    "ssv2",
    DataSet(
        title="Something-Something v2",
        num_classes=174,
        official={"train": 168_913, "val": 24_777, "test": 27_157},
        files={
            "labels": r"(something-something-v2-)?labels\.json",
            "train": r"(something-something-v2-)?train\.json",
            "val": r"(something-something-v2-)?val(idation)?\.json",
            "test": r"(something-something-v2-)?test\.json",
            "answers": r"(something-something-v2-)?test-answers\.csv",
        },
        options={
            "labels": "something-something-v2-labels.json",
            "answers": "test-answers.csv: labels of test",
        },
        required="labels",
        example="78687.webm",
        read=_read,
        read_class_names=_read_label_numbers,
    ),
)
