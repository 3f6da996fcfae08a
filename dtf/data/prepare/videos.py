"""The annotated videos, and what lies on disk of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dtf.data.annotations import AnnotatedSet, class_key
from dtf.data.lists import VIDEO_EXTENSIONS, is_video_name
from dtf.data.sets.data_set import DataSet
from dtf.text import printable

LISTS = "lists"
EXAMPLES = 20

# What became of a video.
MISSING, USABLE, EXCLUDED = 0, 1, 2


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

    def __init__(self, data_set: DataSet, annotated: AnnotatedSet) -> None:
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
        self.state[i] = EXCLUDED if "error" in record else USABLE
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
        folders = [class_key(part).lower() for part in Path(path).parts[:-1]]
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
        label_of_folder = np.array([label_of.get(class_key(os.path.basename(f)), -1) for f in self._folders])
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
        if len(self.examples) < EXAMPLES:
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
