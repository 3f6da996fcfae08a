"""Which videos there are: folder trees and `path label` lists, as a compact index."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dtf.data import bounds
from dtf.data.decode import VideoError
from dtf.text import printable

VIDEO_EXTENSIONS = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".vob", ".webm", ".wmv"}
)

PICTURE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})

_FAULTS_SHOWN = 20
_SEVERAL_LABELS = re.compile(r"(\S.*?)\s+(?:\d+\s+)?\d+(?:,\d+)+", flags=re.ASCII)
_HEADER_WORDS = frozenset({"path", "video", "file", "filename"})


class Kind(NamedTuple):
    """What the files of a folder tree are: a word for one, the endings of their names, one for messages."""

    word: str
    extensions: frozenset[str]
    example: str

    def takes(self, name: str) -> bool:
        """Whether a file of this name is one; hidden files (also macOS's "._x.mp4") are not."""
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in self.extensions


VIDEOS = Kind("video", VIDEO_EXTENSIONS, "*.mp4")
PICTURES = Kind("picture", PICTURE_EXTENSIONS, "*.jpg")


class VideoIndex:
    """Paths and labels of many videos in a few arrays (about 70 bytes a video).

    Forked workers share the arrays; a list of tuples would be copied into each by its reference counts.

    Args:
        root: folder that the paths are relative to.
        paths: relative paths.
        labels: class numbers.
        num_frames: frames of each video as its list says; None: it does not say.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Iterable[str],
        labels: Iterable[int],
        num_frames: Iterable[int] | None = None,
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        joined, ends = bytearray(), array("q", [0])
        for path in paths:  # one at a time: as Python's own, a million paths take 100 MB
            joined += os.fsencode(path)
            ends.append(len(joined))
        self._offsets = np.array(ends, np.int64)
        self._bytes = np.frombuffer(bytes(joined), np.uint8)
        self.labels = np.fromiter(labels, np.int64)
        self.listed_frames = None if num_frames is None else np.fromiter(num_frames, np.int32)
        assert len(ends) - 1 == len(self.labels), "every path needs a label"
        assert self.listed_frames is None or len(self.listed_frames) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def relative_path(self, i: int) -> str:
        """Path of video i below the root."""
        return os.fsdecode(self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of video i."""
        return os.path.join(self.root, self.relative_path(i))

    def digest(self) -> str:
        """SHA-256 of the paths below the root, labels and listed frames: the same for the same list only."""
        digest = hashlib.sha256()
        for part in (self._offsets, self._bytes, self.labels, self.listed_frames):
            digest.update(b"" if part is None else part.tobytes())
        return digest.hexdigest()

    def usable_frames(self, i: int, present: int) -> int:
        """Frames of video i to choose from: all that are present.

        Of stored frames only as many as its list says, as in SIFA / DTF. For a video file the list's
        number, which some other decoder counted, has no influence.

        Args:
            i: number of the video.
            present: frames found in its storage.

        Raises:
            VideoError: fewer frames are stored than listed.
        """
        path = self.path(i)
        if self.listed_frames is None or not os.path.isdir(path):
            return present
        listed = int(self.listed_frames[i])
        if listed > present:
            raise VideoError(path, f"is listed with {listed} frames but holds {present}")
        return listed


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
    """Whether a file of this name is taken for a video, see `Kind.takes`."""
    return VIDEOS.takes(name)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, sorted; as fast for thirty thousand names as reading them."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def list_classes(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the class folders in `folder`, sorted; hidden folders are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def index_folder(
    root: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str],
    faults: list[str],
    kind: Kind = VIDEOS,
    name_of: Callable[[str], str] = str,
) -> VideoIndex:
    """Index ROOT/SPLIT/CLASS/VIDEO; the label is the position of the class in `class_names`.

    Args:
        root: data folder.
        split: folder below the root.
        class_names: known classes; a class without a folder is fine.
        faults: a line is added for each unknown class and each class folder without a video.
        kind: of the files that are taken.
        name_of: name of the class from that of its folder.

    Returns:
        The videos by class, then by name.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = array("q")  # complete when the paths are

    def paths() -> Iterator[str]:
        found = list_classes(os.path.join(root, split))
        for name in found:
            label = label_of.get(name_of(name))
            if label is None:
                faults.append(
                    f"{split}/{printable(name)}: not one of the {len(class_names)} classes of training"
                )
                continue
            with os.scandir(os.path.join(root, split, name)) as entries:
                videos = sorted(e.name for e in entries if kind.takes(e.name) and not e.is_dir())
            if not videos:
                endings = " ".join(sorted(kind.extensions))
                faults.append(f"{split}/{printable(name)}: holds no {kind.word} (known endings: {endings})")
            labels.extend([label] * len(videos))
            folder = os.path.join(split, name, "")
            yield from (folder + video for video in videos)
        if not found:
            faults.append(f"{split}: is empty, expected {split}/CLASS/{kind.example}")

    return VideoIndex(root, paths(), labels)


def read_list(
    root: str | os.PathLike[str], split: str, class_names: Sequence[str] | None, faults: list[str]
) -> VideoIndex:
    """Read a list of `path label` or `path num_frames label` lines, separated by comma or the last blanks.

    Two or three columns, comma or blank: the first line decides, a mix is a fault. Blank lines, a byte order
    mark, Windows line ends and a "path label" header are accepted.

    Args:
        root: data folder; every path of the list must stay inside.
        split: the list file, relative to root.
        class_names: known classes: labels may then be names as well as numbers. None: numbers only, below the
            number of videos or `MAX_SPARSE_CLASSES`.
        faults: a line "FILE line N: ..." is added for each line that cannot be used.

    Returns:
        The videos in the order of the list.
    """
    label_of = {name: label for label, name in enumerate(class_names)} if class_names is not None else {}
    paths: list[str] = []
    labels: list[int] = []
    num_frames: list[int] = []
    line_of: dict[str, int] = {}
    # File names need not be UTF-8: surrogates carry their bytes through.
    try:
        text = bounds.read_regular(Path(root, split)).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        faults.append(f"{split}: cannot be read ({error.strerror})")
        return VideoIndex(root, [], [])
    for number, path, frames, label_text in iter_rows(text, split, faults):
        where = f"{split} line {number}"
        fault, label = parse_label(label_text, label_of, class_names)
        relative = _inside(root, path)
        if fault:
            faults.append(f"{where}: {fault}")
        elif relative is None:
            faults.append(f"{where}: {_clip(path)!r} is not inside the data folder")
        elif relative in line_of:
            faults.append(f"{where}: {_clip(path)!r} was already given in line {line_of[relative]}")
        else:
            line_of[relative] = number
            paths.append(relative)
            labels.append(label)
            if frames is not None:
                num_frames.append(frames)
    if not paths and not faults:
        faults.append(f"{split}: lists no video")
    if class_names is None:
        check_numbers(split, line_of.values(), labels, faults)
    return VideoIndex(root, paths, labels, num_frames or None)


def iter_rows(text: str, source: str, faults: list[str]) -> Iterator[tuple[int, str, int | None, str]]:
    """Rows of a list of videos as (line number, path, number of frames or None, label as written).

    Args:
        text: of the list file, see `read_list`.
        source: its name, for messages.
        faults: a line "SOURCE line N: ..." is added for each line that does not fit.
    """
    layout: tuple[int, str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        fields, separator = _split_line(line.strip())
        if layout is None and fields[0].lower() in _HEADER_WORDS and fields[-1].lower() == "label":
            continue
        shown = _clip(line.strip())
        several = _SEVERAL_LABELS.fullmatch(line.strip())
        if several and is_video_name(os.path.basename(several[1])):
            faults.append(f"{where}: several labels, a video has one class: {shown!r}")
            continue
        if len(fields) not in (2, 3) or not all(fields):
            faults.append(f"{where}: expected `path label` or `path num_frames label`, got {shown!r}")
            continue
        if layout is None:
            layout = (len(fields), separator)
        if layout != (len(fields), separator):
            given, first = (f"{n} columns separated by {s}" for n, s in ((len(fields), separator), layout))
            faults.append(f"{where}: {given}, but the lines before have {first}: {shown!r}")
            continue
        frames = int(fields[1]) if len(fields) == 3 else None
        if frames == 0:
            faults.append(f"{where}: is listed with 0 frames: {shown!r}")
            continue
        yield number, fields[0], frames, fields[-1]


def _split_line(line: str) -> tuple[list[str], str]:
    """(fields, name of the separator); three fields only where the middle one is a number of frames."""
    head, last = ["", *line.rsplit(None, 1)][-2:]
    if "," in line and ("," in last or head.endswith(",") or not last.isdecimal()):
        try:
            fields = [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
        except csv.Error:  # a null byte, or a field of more than 128 KiB
            return [line], "comma"
        if len(fields) == 3 and not _is_count(fields[1]):
            fields = [",".join(fields)]  # no list of videos
        return fields, "comma"
    parts = line.rsplit(None, 2)
    if len(parts) == 3 and not _is_count(parts[1]):
        parts = line.rsplit(None, 1)
    return parts, "blanks"


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 9


def _clip(text: str) -> str:
    return printable(text[:80]) + ("..." if len(text) > 80 else "")


def parse_label(
    text: str, label_of: dict[str, int], class_names: Sequence[str] | None
) -> tuple[str | None, int]:
    """(what is wrong with a label or None, its class number)."""
    if text in label_of:
        return None, label_of[text]
    if text.isascii() and text.isdecimal() and len(text) < 10:
        label = int(text)
        if class_names is None or label < len(class_names):
            return None, label
        return f"label {label} is out of range 0..{len(class_names) - 1}", -1
    allowed = "a whole number from 0" + (" or a class name" if class_names is not None else "")
    return f"label {_clip(text)!r} is not {allowed}", -1


def check_numbers(source: str, lines: Iterable[int], labels: Iterable[int], faults: list[str]) -> None:
    """Add a fault for each label that is too large for its list, where no names tell the number of classes.

    Every number up to the largest label becomes a class, with a name and an output of the network.

    Args:
        source: name of the list, for messages.
        lines, labels: line and label of each video.
        faults: takes the lines "SOURCE line N: ...".
    """
    labels = list(labels)
    stop = max(bounds.MAX_SPARSE_CLASSES, len(labels))
    faults.extend(
        f"{source} line {line}: label {label} is too large for a list of {len(labels)} videos (allowed: "
        f"below {stop}; more with a list of class names)"
        for line, label in zip(lines, labels, strict=True)
        if label >= stop
    )


def _inside(root: str | os.PathLike[str], path: str) -> str | None:
    """The path relative to root, or None when it leads outside. Links are their owner's decision."""
    if not path or "\0" in path:
        return None
    relative = os.path.relpath(os.path.join(os.path.abspath(root), path), os.path.abspath(root))
    return None if relative in (".", "..") or relative.startswith(".." + os.sep) else relative


def find_videos(files: Sequence[str], pictures: bool = False) -> list[str]:
    """The files as given, each folder replaced by the videos in it and below, sorted by path.

    With `pictures`, for a network that takes single frames, by the pictures too.

    Hidden files and folders are left out, links to folders are not followed, and links to files only where
    they stay inside the folder. A folder without videos stays: it may be one of frames, which is a video.
    """
    kinds = (VIDEOS, PICTURES) if pictures else (VIDEOS,)
    found = []
    for file in files:
        if not os.path.isdir(file):
            found.append(file)
            continue
        inside = []
        root = os.path.realpath(file)
        for folder, subfolders, names in os.walk(file):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                target = os.path.realpath(path)
                if any(kind.takes(name) for kind in kinds) and target.startswith(os.path.join(root, "")):
                    inside.append(path)
        found.extend(sorted(inside) or [file])
    return found
