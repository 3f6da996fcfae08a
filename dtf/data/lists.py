"""Which videos there are: folder trees and `path label` lists, as a compact index."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dtf.data.decode import printable

VIDEO_EXTENSIONS = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".vob", ".webm", ".wmv"}
)

_FAULTS_SHOWN = 20
_HEADERS = (("path", "label"), ("video", "label"), ("file", "label"), ("filename", "label"))


class VideoIndex:
    """Paths and labels of many videos in three arrays (about 70 bytes a video).

    Forked workers share the arrays; a list of tuples would be copied into each by its reference counts.

    Args:
        root: folder that the paths are relative to.
        paths: relative paths.
        labels: class numbers.
    """

    def __init__(self, root: str | os.PathLike[str], paths: Iterable[str], labels: Iterable[int]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), ends])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self.labels = np.fromiter(labels, np.int64)
        assert len(encoded) == len(self.labels), "every path needs a label"

    def __len__(self) -> int:
        return len(self.labels)

    def relative_path(self, i: int) -> str:
        """Path of video i below the root."""
        return os.fsdecode(self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of video i."""
        return os.path.join(self.root, self.relative_path(i))


def raise_faults(where: str, faults: Sequence[str]) -> None:
    """Raise one ValueError that names every fault (long lists are cut), or do nothing when there is none."""
    if not faults:
        return
    if len(faults) == 1:
        raise ValueError(f"{where}: {faults[0]}")
    lines = [f"  {fault}" for fault in faults[:_FAULTS_SHOWN]]
    if len(faults) > _FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - _FAULTS_SHOWN} more")
    raise ValueError("\n".join([f"{where}: {len(faults)} problems", *lines]))


def is_video_name(name: str) -> bool:
    """Whether a file of this name is taken for a video; hidden files (also macOS's "._x.mp4") are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def list_classes(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the class folders in `folder`, sorted; hidden folders are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def index_folder(
    root: str | os.PathLike[str], split: str, class_names: Sequence[str], faults: list[str]
) -> VideoIndex:
    """Index ROOT/SPLIT/CLASS/VIDEO; the label is the position of CLASS in `class_names`.

    Args:
        root: data folder.
        split: folder below the root.
        class_names: known classes; a class without a folder is fine.
        faults: a line is added for each unknown class and each class folder without a video.

    Returns:
        The videos by class, then by name.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    paths: list[str] = []
    labels: list[int] = []
    found = list_classes(os.path.join(root, split))
    for name in found:
        if name not in label_of:
            faults.append(f"{split}/{printable(name)}: not one of the {len(class_names)} classes of training")
            continue
        with os.scandir(os.path.join(root, split, name)) as entries:
            videos = sorted(e.name for e in entries if is_video_name(e.name) and not e.is_dir())
        if not videos:
            faults.append(f"{split}/{printable(name)}: holds no video (known endings: {_endings()})")
        paths.extend(os.path.join(split, name, video) for video in videos)
        labels.extend([label_of[name]] * len(videos))
    if not found:
        faults.append(f"{split}: is empty, expected {split}/CLASS/*.mp4")
    return VideoIndex(root, paths, labels)


def read_list(
    root: str | os.PathLike[str], split: str, class_names: Sequence[str] | None, faults: list[str]
) -> VideoIndex:
    """Read a `path label` list: two columns, separated by a comma (csv) or by the last blank of the line.

    Blank lines, a byte order mark, Windows line ends and a "path label" header are accepted.

    Args:
        root: data folder; every path of the list must stay inside.
        split: the list file, relative to root.
        class_names: known classes: labels may then be names as well as numbers. None: numbers only.
        faults: a line "FILE line N: ..." is added for each line that cannot be used.

    Returns:
        The videos in the order of the list.
    """
    label_of = {name: label for label, name in enumerate(class_names)} if class_names is not None else {}
    paths: list[str] = []
    labels: list[int] = []
    line_of: dict[str, int] = {}
    # File names need not be UTF-8: surrogates carry their bytes through.
    text = Path(root, split).read_bytes().decode("utf-8-sig", "surrogateescape")
    separator = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{split} line {number}"
        fields, found_separator = _split_line(line)
        if number == 1 and tuple(f.lower() for f in fields) in _HEADERS:
            separator = found_separator
            continue
        if len(fields) != 2:
            faults.append(f"{where}: expected `path label`, got {len(fields)} columns: {printable(line)!r}")
            continue
        if separator and found_separator != separator:
            faults.append(f"{where}: separated by {found_separator}, but the lines before by {separator}")
            continue
        separator = found_separator
        path, label_text = fields
        fault, label = _parse_label(label_text, label_of, class_names)
        relative = _inside(root, path)
        if fault:
            faults.append(f"{where}: {fault}")
        elif relative is None:
            faults.append(f"{where}: {printable(path)!r} is not inside the data folder")
        elif relative in line_of:
            faults.append(f"{where}: {printable(path)!r} was already given in line {line_of[relative]}")
        else:
            line_of[relative] = number
            paths.append(relative)
            labels.append(label)
    if not paths and not faults:
        faults.append(f"{split}: lists no video")
    return VideoIndex(root, paths, labels)


def _split_line(line: str) -> tuple[list[str], str]:
    row = next(csv.reader([line], skipinitialspace=True))
    if len(row) > 1 and " " not in row[-1].strip():
        return [field.strip() for field in row], "comma"
    path, _, label = line.strip().rpartition(" ") if " " in line.strip() else line.strip().rpartition("\t")
    fields = [path.strip(), label.strip()] if path else [label.strip()]
    # `folder num_frames label` is a usual list of frame folders; a video file name has an ending.
    head, _, tail = fields[0].rpartition(" ")
    if len(fields) == 2 and head and tail.isdecimal():
        fields = [head, tail, fields[1]]
    return fields, "blank"


def _parse_label(
    text: str, label_of: dict[str, int], class_names: Sequence[str] | None
) -> tuple[str | None, int]:
    if text in label_of:
        return None, label_of[text]
    if text.isascii() and text.isdecimal() and len(text) < 10:
        label = int(text)
        if class_names is None or label < len(class_names):
            return None, label
        return f"label {label} is out of range 0..{len(class_names) - 1}", -1
    allowed = "a whole number from 0" + (" or a class name" if class_names is not None else "")
    return f"label {printable(text)!r} is not {allowed}", -1


def _inside(root: str | os.PathLike[str], path: str) -> str | None:
    """The path relative to root, or None when it leads outside. Links are their owner's decision."""
    if not path or "\0" in path:
        return None
    relative = os.path.relpath(os.path.join(os.path.abspath(root), path), os.path.abspath(root))
    return None if relative in (".", "..") or relative.startswith(".." + os.sep) else relative


def _endings() -> str:
    return " ".join(sorted(VIDEO_EXTENSIONS))
