"""Readers of the official annotations of Kinetics, Something-Something and Diving48, as they are downloaded.

Each reader returns compact records (about 30 bytes a video) and collects everything that is wrong, with file
and line, before it raises one ValueError. Names of classes are kept. A byte order mark, Windows line ends and
blank lines are accepted. In class names "_" counts as a blank and double quotes are dropped, since copies of
Kinetics differ in this.

Formats: Kay et al., "The Kinetics Human Action Video Dataset" (2017) for Kinetics; Goyal et al. (ICCV 2017)
for Something-Something, here version 2; Li et al., "RESOUND" (ECCV 2018) for Diving48.

Array letter: N videos of a split.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dtf.data import bounds
from dtf.data.lists import check_numbers, iter_rows, parse_label, raise_faults, repeated
from dtf.text import printable

StrPath = str | os.PathLike[str]

WITHHELD = -1
"""Label of a video whose class is not published (test splits)."""

_HINTS = 20  # nearest names are looked up for this many faults only: it is slow, and more are not shown
_JSON_BLANKS = re.compile(r"[ \t\r\n]*")
_MAX_CLIP_SECONDS = 999_999  # six digits in the file names


@dataclass(frozen=True)
class Annotations:
    """One split.

    Attributes:
        ids: (N,) bytes: names of the files without their ending, unique.
        labels: (N,) int32: class numbers, or WITHHELD.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, i: int) -> str:
        """Name of video i without an ending."""
        return self.ids[i].decode()


@dataclass(frozen=True)
class AnnotatedSet:
    """What the annotation files of a data set say.

    Attributes:
        class_names: names in the order of their labels.
        splits: "train", "val", "test", as far as there is a file for it.
        notes: what is odd, yet no fault; one line each.
    """

    class_names: list[str]
    splits: dict[str, Annotations]
    notes: list[str] = field(default_factory=list)


def class_key(name: str) -> str:
    """The name of a class without what copies of a data set differ in: "_" for blanks, quotes around it."""
    return " ".join(name.replace("_", " ").replace('"', "").split())


def shown(text: object, limit: int = 60) -> str:
    """A quoted piece of a foreign file for a message: one line, of bounded length."""
    string = printable(str(text)[: limit + 1])
    return repr(string if len(string) <= limit else string[:limit] + "...")


# ---- Kinetics ------------------------------------------------------------------------------------------


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
            found.append(f"{read.where(int(i))}: {_unknown_class(names[numbers[i]], known, found)}")
        read.labels = array("l", labels.tolist())
        keep[split] = ~unknown
    splits = _join(rows, keep, found)
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
) -> _Rows:
    rows = _Rows(os.path.basename(path))
    text = _read_text(path)
    faults_before = len(faults)
    columns: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
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
            continue
        if len(fields) != len(columns):
            faults.append(f"{where}: {len(fields)} columns, the header has {len(columns)}: {shown(line)}")
            continue
        youtube_id = fields[columns["youtube_id"]]
        start, end = (_whole_seconds(fields[columns[name]]) for name in ("time_start", "time_end"))
        label = class_key(fields[columns["label"]]) if "label" in columns else None
        if not re.fullmatch(r"[A-Za-z0-9_-]{11}", youtube_id):
            faults.append(f"{where}: a YouTube id has 11 letters, digits, - or _, got {shown(youtube_id)}")
        elif start is None or end is None or not start < end <= _MAX_CLIP_SECONDS:
            times = f"{shown(fields[columns['time_start']])}, {shown(fields[columns['time_end']])}"
            faults.append(f"{where}: start and end must be whole seconds with start < end, got {times}")
        elif label is not None and not (label and label.isprintable()):
            faults.append(f"{where}: the class name is empty or unprintable: {shown(label)}")
        else:
            if label is not None and label not in number_of:
                number_of[label] = len(names)
                names.append(label)
            name = f"{youtube_id}_{start:06d}_{end:06d}"
            rows.add(name, WITHHELD if label is None else number_of[label], number)
    if not columns:
        faults.append(f"{rows.source}: is empty")
    elif not rows.ids and len(faults) == faults_before:
        faults.append(f"{rows.source}: has no row")
    return rows


def _whole_seconds(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,9})(\.0*)?", text)
    return int(match[1]) if match else None


# ---- Something-Something -------------------------------------------------------------------------------


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
        faults: as for `read_kinetics`.

    Raises:
        ValueError: as for `read_kinetics`; always when the labels file is faulty.
    """
    found = [] if faults is None else faults
    class_names = _read_label_numbers(labels_file)
    label_of = {class_key(name): label for label, name in enumerate(class_names)}
    answers = _read_answers(answers_file, label_of, class_names, found) if answers_file is not None else {}
    rows: dict[str, _Rows] = {}
    for split, path in files.items():
        read = rows[split] = _Rows(os.path.basename(path))
        for line, entry in _iter_json_list(path, found):
            where = f"{read.source} line {line}"
            if not isinstance(entry, dict) or "id" not in entry:
                found.append(f"{where}: expected an object with an id, got {_kind(entry)}")
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
                    found.append(f"{where} (id {video_id}): {_unknown_class(name, class_names, found)}")
                else:
                    read.add(video_id, label, line)
    splits = _join(rows, {}, found)
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

    entries = _parse_json(path, object_pairs_hook=unique)
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
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        video_id, _, name = line.strip().partition(";")
        label = label_of.get(class_key(name))
        where = f"{source} line {number}"
        if label is None:
            faults.append(f"{where}: expected `id;class name`; {_unknown_class(name, class_names, faults)}")
        elif video_id in answers:
            faults.append(f"{where}: id {shown(video_id)} was already given")
        else:
            answers[video_id] = label
    return answers


# ---- Diving48 ------------------------------------------------------------------------------------------


def read_diving48(
    vocabulary_file: StrPath, files: Mapping[str, StrPath], faults: list[str] | None = None
) -> AnnotatedSet:
    """Read the JSON files of Diving48, version 1 or 2 (version 2 has cleaner labels).

    All classes of the vocabulary are kept, also one that no video has. The frame range of an entry covers the
    whole video (readers differ in whether its end is included) and is checked, not kept.

    Args:
        vocabulary_file: `Diving48_vocab.json`: four words for each class, its place being its label.
        files: `Diving48_V2_train.json` as "train", `Diving48_V2_test.json` as "val" or "test".
        faults: as for `read_kinetics`.

    Raises:
        ValueError: as for `read_kinetics`; always when the vocabulary is faulty.
    """
    found = [] if faults is None else faults
    class_names = _read_vocabulary(vocabulary_file)
    rows: dict[str, _Rows] = {}
    for split, path in files.items():
        read = rows[split] = _Rows(os.path.basename(path))
        for line, entry in _iter_json_list(path, found):
            where = f"{read.source} line {line}"
            if not isinstance(entry, dict) or "vid_name" not in entry:
                found.append(f"{where}: expected an object with vid_name, got {_kind(entry)}")
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
    splits = _join(rows, {}, found)
    if faults is None:
        raise_faults("annotations", found)
    return AnnotatedSet(class_names, splits)


def _read_vocabulary(path: StrPath) -> list[str]:
    source = os.path.basename(path)
    entries = _parse_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{source}: expected a list of classes, each a list of four words")
    faults: list[str] = []
    names: list[str] = []
    seen: dict[str, int] = {}
    for label, words in enumerate(entries):
        fine = isinstance(words, list) and words and all(isinstance(w, str) and w.strip() for w in words)
        name = " ".join(w.strip() for w in words) if fine else ""
        if not name or not name.isprintable():
            faults.append(f"class {label}: expected four words, got {_kind(words)}")
        elif name in seen:
            faults.append(f"class {label} is the same as class {seen[name]}: {shown(name)}")
        seen.setdefault(name, label)
        names.append(name)
    raise_faults(source, faults)
    return names


# ---- lists of paths ---------------------------------------------------------------------------------------


def read_path_lists(
    files: Mapping[str, StrPath], class_names: Sequence[str] | None = None, faults: list[str] | None = None
) -> AnnotatedSet:
    """Read lists as the field passes them around (`dtf.data.lists.read_list`), wherever their paths lead.

    Only the last part of a path, without its ending, is kept: it names the video in all three data sets.

    Args:
        files: list file of "train", "val" and "test", whichever there are.
        class_names: names in the order of their labels. None: the numbers serve as names.
        faults: as for `read_kinetics`.

    Raises:
        ValueError: as for `read_kinetics`.
    """
    found = [] if faults is None else faults
    label_of = {name: label for label, name in enumerate(class_names or [])}
    rows: dict[str, _Rows] = {}
    for split, path in files.items():
        read = rows[split] = _Rows(os.path.basename(path))
        for line, video, _, label_text in iter_rows(_read_text(path), read.source, found):
            name = os.path.splitext(os.path.basename(video.rstrip("/")))[0]
            fault, label = parse_label(label_text, label_of, class_names)
            if fault is not None:
                found.append(f"{read.source} line {line}: {fault}")
            elif not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                found.append(f"{read.source} line {line}: {shown(name)} cannot be the name of a video")
            else:
                read.add(name, label, line)
        if not read.ids and not found:
            found.append(f"{read.source}: lists no video")
        if class_names is None:
            check_numbers(read.source, read.lines, read.labels, found)
    splits = _join(rows, {}, found)
    if faults is None:
        raise_faults("annotations", found)
    num_classes = 1 + max((int(a.labels.max()) for a in splits.values() if len(a)), default=-1)
    return AnnotatedSet(list(class_names or map(str, range(num_classes))), splits)


def is_kinetics_csv(path: StrPath) -> bool:
    """Whether a file begins with the header of a Kinetics annotation, rather than being a list of paths."""
    return "youtube_id" in next((line for line in _read_text(path).split("\n") if line.strip()), "").lower()


# ---- shared --------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Records of one file while it is read."""

    source: str
    ids: list[bytes] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("l"))
    lines: array[int] = field(default_factory=lambda: array("l"))

    def add(self, name: str, label: int, line: int) -> None:
        self.ids.append(name.encode("ascii"))
        self.labels.append(label)
        self.lines.append(line)

    def where(self, i: int) -> str:
        return f"{self.source} line {self.lines[i]}"


def _join(
    rows: Mapping[str, _Rows], keep: Mapping[str, np.ndarray], faults: list[str]
) -> dict[str, Annotations]:
    """Drop what `keep` says and what was already given, in the same or another split."""
    sizes = [len(read.ids) for read in rows.values()]
    ids = np.array([i for read in rows.values() for i in read.ids], dtype=np.bytes_)
    split_of = np.repeat(np.arange(len(rows)), sizes)
    lines = np.concatenate(
        [np.array(read.lines, dtype=np.int64) for read in rows.values()] or [np.array([], int)]
    )
    kept = np.concatenate(
        [keep.get(s, np.ones(len(r.ids), bool)) for s, r in rows.items()] or [np.array([], bool)]
    )
    order = np.argsort(ids, kind="stable")  # equal ids stay in the order of reading
    repeats = np.flatnonzero(ids[order][:-1] == ids[order][1:])
    sources = [read.source for read in rows.values()]
    for before, after in zip(order[repeats], order[repeats + 1], strict=True):
        kept[after] = False
        first, again = (f"{sources[split_of[i]]} line {lines[i]}" for i in (before, after))
        faults.append(f"{again}: {ids[after].decode()} was already given in {first}")
    splits = {}
    for k, (split, read) in enumerate(rows.items()):
        mask = kept & (split_of == k)
        labels = np.array(read.labels, dtype=np.int32)[mask[split_of == k]]
        splits[split] = Annotations(ids[mask], labels)
    return splits


def _kind(entry: object) -> str:
    """A JSON value for a message; of lists and objects, which may be deep, only that they are such."""
    if isinstance(entry, list | dict):
        return "a list" if isinstance(entry, list) else "an object without it"
    return shown(entry)


def _unknown_class(name: str, known: Sequence[str], faults: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=1) if len(faults) < _HINTS else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{shown(name)} is not one of the {len(known)} classes{hint}"


def _read_text(path: StrPath) -> str:
    """The text of a file, or ValueError with the reason and, where it is not UTF-8, the line."""
    source = os.path.basename(path)
    try:
        data = bounds.read_regular(path)
    except OSError as error:
        raise ValueError(f"{printable(os.fspath(path))}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source} line {line}: is not UTF-8 text") from error


def _parse_json(path: StrPath, **options: Any) -> Any:
    source = os.path.basename(path)
    text = _read_text(path)
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} line {error.lineno}: is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; deep nesting
        raise ValueError(f"{source} line 1: is not usable JSON ({error})") from error


def _iter_json_list(path: StrPath, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """Entries of a JSON list with the line where each begins.

    One at a time: all at once, 169,000 entries would take half a gigabyte.
    """
    source = os.path.basename(path)
    text = _read_text(path)
    decoder = json.JSONDecoder()
    position = _skip_blanks(text, 0)
    line, counted = 1, 0
    if text[position : position + 1] != "[":
        where = f"{source} line {_line_of(text, position)}"
        faults.append(f"{where}: expected a JSON list, got {shown(text[position : position + 61])}")
        return
    position = _skip_blanks(text, position + 1)
    if text[position : position + 1] == "]":
        faults.append(f"{source}: lists no video")
        return
    while True:
        line += text.count("\n", counted, position)
        counted = position
        try:
            entry, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            faults.append(
                f"{source} line {error.lineno}: is not JSON ({error.msg}); nothing after it was read"
            )
            return
        except (ValueError, RecursionError) as error:
            faults.append(f"{source} line {line}: is not usable JSON ({error}); nothing after it was read")
            return
        yield line, entry
        position = _skip_blanks(text, position)
        separator = text[position : position + 1]
        if separator == ",":
            position = _skip_blanks(text, position + 1)
            continue
        rest = _skip_blanks(text, position + 1)
        if separator != "]" or rest < len(text):
            place = position if separator != "]" else rest
            faults.append(
                f"{source} line {_line_of(text, place)}: is not JSON (expected , or the end of the list)"
            )
        return


def _skip_blanks(text: str, position: int) -> int:
    match = _JSON_BLANKS.match(text, position)
    assert match is not None
    return match.end()


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
