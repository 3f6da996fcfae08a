"""What readers of annotations share: their result, text and JSON from elsewhere, lists of paths.

The readers of the official annotations stand with their data sets, in `dtf.data.sets`. Each returns compact
records (about 30 bytes a video) and collects everything that is wrong, with file and line, before it raises
one ValueError. Names of classes are kept. A byte order mark, Windows line ends and blank lines are accepted.
In class names "_" counts as a blank and double quotes are dropped, since copies of Kinetics differ in this.

Array letter: N videos of a split.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dtf.data import bounds
from dtf.data.lists import check_numbers, iter_rows, parse_label, raise_faults
from dtf.text import nearest, printable

StrPath = str | os.PathLike[str]

WITHHELD = -1
"""Label of a video whose class is not published (test splits)."""

_HINTS = 20  # nearest names are looked up for this many faults only: it is slow, and more are not shown
_JSON_BLANKS = re.compile(r"[ \t\r\n]*")


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


# ---- lists of paths --------------------------------------------------------------------------------------


def read_path_lists(
    files: Mapping[str, StrPath], class_names: Sequence[str] | None = None, faults: list[str] | None = None
) -> AnnotatedSet:
    """Read lists as the field passes them around (`dtf.data.lists.read_list`), wherever their paths lead.

    Only the last part of a path, without its ending, is kept: it names the video in all three data sets.

    Args:
        files: list file of "train", "val" and "test", whichever there are.
        class_names: names in the order of their labels. None: the numbers serve as names.
        faults: takes a line for each fault, and the rows concerned are left out. None: faults raise.

    Raises:
        ValueError: a file is unreadable, or (`faults` is None) there are faults; all of them are named.
    """
    found = [] if faults is None else faults
    label_of = {name: label for label, name in enumerate(class_names or [])}
    rows: dict[str, Rows] = {}
    for split, path in files.items():
        read = rows[split] = Rows(os.path.basename(path))
        for line, video, _, label_text in iter_rows(annotation_text(path), read.source, found):
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
    splits = join(rows, {}, found)
    if faults is None:
        raise_faults("annotations", found)
    num_classes = 1 + max((int(a.labels.max()) for a in splits.values() if len(a)), default=-1)
    return AnnotatedSet(list(class_names or map(str, range(num_classes))), splits)


def read_class_list(path: StrPath) -> list[str]:
    """Names of classes by label from a file with one on each line.

    Raises:
        ValueError: the file repeats a name, is empty or is not UTF-8. OSError: it cannot be read.
    """
    text = bounds.read_regular(path).decode("utf-8-sig")
    names = [line.strip() for line in text.split("\n") if line.strip()]
    twice = [name for name, count in Counter(map(class_key, names)).items() if count > 1]
    if twice or not names:
        problem = f"repeats {', '.join(twice[:5])}" if twice else "is empty"
        raise ValueError(f"{os.path.basename(path)}: {problem}; expected one class name per line")
    return [class_key(name) for name in names]


# ---- what readers share -----------------------------------------------------------------------------------


@dataclass
class Rows:
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


def join(
    rows: Mapping[str, Rows], keep: Mapping[str, np.ndarray], faults: list[str]
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


def kind(entry: object) -> str:
    """A JSON value for a message; of lists and objects, which may be deep, only that they are such."""
    if isinstance(entry, list | dict):
        return "a list" if isinstance(entry, list) else "an object without it"
    return shown(entry)


def unknown_class(name: str, known: Sequence[str], faults: Sequence[str]) -> str:
    hint = nearest(name[:100], known, repr) if len(faults) < _HINTS else ""
    return f"{shown(name)} is not one of the {len(known)} classes{hint}"


def annotation_text(path: StrPath) -> str:
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


def parse_json(path: StrPath, **options: Any) -> Any:
    source = os.path.basename(path)
    text = annotation_text(path)
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} line {error.lineno}: is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; deep nesting
        raise ValueError(f"{source} line 1: is not usable JSON ({error})") from error


def iter_json_list(path: StrPath, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """Entries of a JSON list with the line where each begins.

    One at a time: all at once, 169,000 entries would take half a gigabyte.
    """
    source = os.path.basename(path)
    text = annotation_text(path)
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
