"""The videos of a run as rows of sqlite: what is annotated, what lies on disk of it, what became of it.

Two databases on one connection. `main` is temporary and holds the annotated videos with the paths of their
files, for this run alone; sqlite keeps a few megabytes of it in memory and the rest in a temporary file.
`journal` (see `dtf.data.prepare.journal`) stays beside the lists and holds what was found out about each
file. The view `outcomes` joins them, a row for each annotated video.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dtf.data.annotations import AnnotatedSet

_VIDEOS = """
CREATE TABLE videos (
    number INTEGER PRIMARY KEY,  -- in the order of the annotations
    split INTEGER NOT NULL,      -- position in `Videos.splits`
    name TEXT NOT NULL UNIQUE,
    label INTEGER NOT NULL,
    path BLOB                    -- of its file below the root; NULL: there is none
)"""

# usable: 1, 0 (excluded) or NULL (not looked at).
_OUTCOMES = """
CREATE TEMP VIEW outcomes AS
SELECT number, split, name, label, path, size, time, full, error, frames, fps, width, height, rotation,
    damaged, ending, CASE WHEN size IS NULL THEN NULL ELSE error IS NULL END AS usable
FROM main.videos LEFT JOIN journal.results USING (path)"""

_BATCH = 500


def pack(text: str) -> bytes:
    """Text with odd bytes, of a path or a message, as sqlite can keep it."""
    return text.encode("utf-8", "surrogatepass")


def unpack(data: bytes) -> str:
    """What was packed."""
    return data.decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class File:
    """A video's file, and what an earlier run has noted of it.

    Attributes:
        path: below the root.
        stamp: its size (bytes) and time (ns) when it was looked at; None: it was not.
        full: whether every frame was decoded.
        excluded: whether it cannot be used.
        listed: path for the lists: that of its copy where one was made.
    """

    path: str
    stamp: tuple[int, int] | None
    full: bool
    excluded: bool
    listed: str


def listed_path(path: str, ending: str | None) -> str:
    """Path of a video for the lists: that of its copy where one was made, with this ending."""
    return os.path.splitext(path)[0] + ending if ending else path


class Videos:
    """The annotated videos of a run; `close` it.

    Args:
        annotated: what the annotations say.

    Attributes:
        class_names, splits: names, by their numbers.
    """

    def __init__(self, annotated: AnnotatedSet) -> None:
        self.class_names = annotated.class_names
        self.splits = list(annotated.splits)
        self.db = sqlite3.connect("", timeout=0.0, isolation_level=None)
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", _VIDEOS, "BEGIN"):
            self.db.execute(statement)
        for number, part in enumerate(annotated.splits.values()):
            self.db.executemany(
                "INSERT INTO videos (split, name, label) VALUES (?, ?, ?)",
                ((number, part.name(i), int(part.labels[i])) for i in range(len(part))),
            )
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Forget the rows; the journal stays."""
        self.db.close()

    def __len__(self) -> int:
        return int(self.value("SELECT count(*) FROM videos"))

    @property
    def num_found(self) -> int:
        """Videos with a file."""
        return int(self.value("SELECT count(path) FROM videos"))

    def value(self, query: str, *values: Any) -> Any:
        """The only value that a query answers."""
        return self.db.execute(query, values).fetchone()[0]

    def find(self, name: str) -> tuple[int, str, int, str | None] | None:
        """(number, split, label, path of its file or None) of the video of this name, if there is one."""
        if not name.isascii():
            return None
        query = "SELECT number, split, label, path FROM videos WHERE name = ?"
        row = self.db.execute(query, (name,)).fetchone()
        return row and (row[0], self.splits[row[1]], row[2], row[3] and unpack(row[3]))

    def set_path(self, number: int, path: str) -> None:
        """Note the file of a video."""
        self.db.execute("UPDATE videos SET path = ? WHERE number = ?", (pack(path), number))

    def labelled_paths(self) -> Iterator[tuple[str, int]]:
        """(path, label) of every video with a file."""
        for path, label in self.db.execute(
            "SELECT path, label FROM videos WHERE path IS NOT NULL ORDER BY number"
        ):
            yield unpack(path), label

    # ---- with a journal ------------------------------------------------------------------------------------

    def join_journal(self) -> None:
        """The journal is attached: make the view."""
        self.db.execute(_OUTCOMES)

    def files(self) -> Iterator[File]:
        """Every video with a file, in the order of the annotations; results may be noted in between."""
        query = (
            "SELECT number, path, size, time, full, usable, ending FROM outcomes "
            f"WHERE number > ? AND path IS NOT NULL ORDER BY number LIMIT {_BATCH}"
        )
        last = -1
        while rows := self.db.execute(query, (last,)).fetchall():
            last = rows[-1][0]
            for _, packed, size, time, full, usable, ending in rows:
                path = unpack(packed)
                stamp = None if size is None else (size, time)
                yield File(path, stamp, bool(full), usable == 0, listed_path(path, ending))

    def note(self, path: str, stamp: tuple[int, int], full: bool, result: Mapping[str, Any]) -> None:
        """Keep what was found out about a file: from now on, a killed process does not lose it.

        Args:
            path: below the root.
            stamp: size (bytes) and time (ns) of the file.
            full: whether every frame was decoded.
            result: of `probe` or `resize`.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: this is no result.
            sqlite3.Error: nor is this, or it cannot be kept.
        """
        if "error" in result:
            found: tuple[Any, ...] = (pack(str(result["error"])), *[None] * 7)
        else:
            names = ("frames", "fps", "width", "height", "rotation", "damaged")
            found = (None, *(result[name] for name in names), result.get("ending"))
        values = (pack(path), *stamp, int(full), *found)
        self.db.execute(f"INSERT OR REPLACE INTO journal.results VALUES ({','.join('?' * 12)})", values)

    def forget_excluded(self) -> None:
        """Look again at every file of this run that was excluded."""
        self.db.execute(
            "DELETE FROM journal.results WHERE error IS NOT NULL AND path IN (SELECT path FROM main.videos)"
        )
