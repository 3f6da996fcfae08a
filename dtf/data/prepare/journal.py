"""What was found out about each video, kept so that a stopped run can go on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dtf.data.prepare.videos import EXCLUDED, MISSING, Videos

try:
    import fcntl
except ImportError:  # Windows: two runs at once on one folder are then not noticed
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.jsonl"


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
            failed = videos.state == EXCLUDED
            videos.state[failed] = MISSING
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
