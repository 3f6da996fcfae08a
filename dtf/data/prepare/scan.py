"""Which files below a folder are the annotated videos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dtf.data.annotations import class_key
from dtf.data.lists import is_video_name
from dtf.data.prepare.rows import Videos
from dtf.data.sets.data_set import DataSet
from dtf.text import printable

LISTS = "lists"
"""Folder of what a run writes; nothing in it is taken for a video."""

EXAMPLES = 20


class Tally:
    """A count with some examples."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []

    def add(self, path: str) -> None:
        """Count a path."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(printable(path))

    def report(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {"count": self.count, "examples": self.examples}


class Scan:
    """Finds the videos' files.

    Args:
        videos: get the paths of their files.
        data_set: knows their names.

    Attributes:
        extra, doubles, misplaced: files that are not annotated, lie at two places, or lie in the folder of
            another class.
    """

    def __init__(self, videos: Videos, data_set: DataSet) -> None:
        self._videos = videos
        self._key = data_set.key
        self.extra = Tally()
        self.doubles = Tally()
        self.misplaced = Tally()

    def run(self, root: Path, skip: Path) -> None:
        """Look through all folders below root; links to folders are followed, each folder is entered once.

        Args:
            root: where to look.
            skip: folder of a copy that must not be taken for the original.
        """
        self._videos.db.execute("BEGIN")
        seen: set[tuple[int, int]] = set()
        todo = [""]
        while todo:
            folder = todo.pop()
            status = os.stat(os.path.join(root, folder))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    path = os.path.join(folder, entry.name)
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        kept_out = path == LISTS or os.path.join(root, path) == str(skip)
                        if not kept_out and not self._take(entry.name, path, entry.path):
                            todo.append(path)
                    elif is_video_name(entry.name) and not self._take(os.path.splitext(entry.name)[0], path):
                        self.extra.add(path)
        self._videos.db.execute("COMMIT")
        self._check_folders()

    def _take(self, stem: str, path: str, folder: str | None = None) -> bool:
        """Note the file of an annotated video; False: it is none (a folder is one where it holds frames)."""
        found = self._videos.find(self._key(stem))
        if found is None or (folder is not None and not _holds_frames(folder)):
            return False
        number, split, label, old = found
        if old is not None:
            kept = min(old, path, key=lambda path: self._preference(split, label, path))
            self.doubles.add(path if kept == old else old)
            if kept == old:
                return True
        self._videos.set_path(number, path)
        return True

    def _preference(self, split: str, label: int, path: str) -> tuple[Any, ...]:
        """Which of two files of one video is taken: the smaller answer."""
        folders = [class_key(part).lower() for part in Path(path).parts[:-1]]
        return (
            not any("replacement" in part for part in folders),  # offered for broken files of Kinetics
            not any(split in part.split(" ") for part in folders),
            label >= 0 and self._videos.class_names[label].lower() not in folders,
            path,
        )

    def _check_folders(self) -> None:
        """Count the videos that lie in the folder of another class."""
        label_of = {name: label for label, name in enumerate(self._videos.class_names)}
        given: dict[str, int] = {}  # by folder
        for path, label in self._videos.labelled_paths():
            folder = os.path.dirname(path)
            if folder not in given:
                given[folder] = label_of.get(class_key(os.path.basename(folder)), -1)
            if label >= 0 and given[folder] not in (-1, label):
                self.misplaced.add(path)


def _holds_frames(folder: str) -> bool:
    """Whether a folder is one video (an LMDB, JPEG images), as against a folder of videos of such a name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "data.mdb" or entry.name.lower().endswith((".jpg", ".jpeg")):
                return True
            if entry.is_dir() or is_video_name(entry.name):
                return False
    return True  # empty: to be reported as a video without frames
