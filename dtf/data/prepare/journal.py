"""`lists/journal.sqlite`: what was found out about each file, kept so that a stopped run can go on.

Each result is a transaction: a killed process loses none that was noted. After a power cut, the latest may be
missing. One run at a time has the journal, by sqlite's own lock.

The file may come from anywhere. Its tables must be declared exactly as here, so that no trigger, view or
column of another's runs, and every row must keep what they declare.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtf.data.prepare.rows import Videos
from dtf.files import open_regular
from dtf.text import printable

JOURNAL = "journal.sqlite"
_OLD = "journal.jsonl"
_MAX_LINE_BYTES = 1 << 20

_TABLES = {
    "settings": "(name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID",
    # error: why it is excluded; without one, the values of `dtf.data.prepare.jobs.probe`. Types are checked
    # here, since older versions of sqlite have no strict tables.
    "results": """(
    path BLOB PRIMARY KEY NOT NULL CHECK (typeof(path) = 'blob'),
    size INTEGER NOT NULL CHECK (typeof(size) = 'integer'),
    time INTEGER NOT NULL CHECK (typeof(time) = 'integer'),
    full INTEGER NOT NULL CHECK (full IN (0, 1)),
    error BLOB CHECK (typeof(error) IN ('null', 'blob')),
    frames INTEGER, fps REAL, width INTEGER, height INTEGER, rotation INTEGER, damaged INTEGER,
    ending TEXT CHECK (ending IS NULL OR typeof(ending) = 'text' AND ending NOT GLOB '*[^.a-z0-9]*'),
    CHECK (error IS NOT NULL OR typeof(frames) = 'integer' AND typeof(fps) = 'real'
        AND typeof(width) = 'integer' AND typeof(height) = 'integer'
        AND typeof(rotation) = 'integer' AND typeof(damaged) = 'integer')
) WITHOUT ROWID""",
}


@contextlib.contextmanager
def open_journal(videos: Videos, folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Join the journal in a folder to the videos, for this process alone.

    Args:
        videos: get the view `outcomes`, and can note results.
        folder: of the lists.
        settings: of the run, plain data; a journal belongs to one kind of run.

    Raises:
        ValueError: another process has it, it belongs to a run with other settings, it is damaged, or
            (within) it cannot be written.
        OSError: the folder cannot be written.
    """
    path = folder / JOURNAL
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Without the shared memory of other modes: it works on network file systems too.
        videos.db.execute("ATTACH ? AS journal", (os.fsencode(path),))
        videos.db.execute("PRAGMA journal.locking_mode = EXCLUSIVE")
        videos.db.execute("PRAGMA journal.journal_mode = WAL")
        videos.db.execute("PRAGMA journal.synchronous = NORMAL")
        videos.db.execute("BEGIN IMMEDIATE")
        _check_or_make(videos.db, path, settings)
        taken_over = _take_over(videos, folder / _OLD, settings)
        videos.db.execute("COMMIT")
        if taken_over:
            videos.db.execute("PRAGMA journal.wal_checkpoint(TRUNCATE)")  # on disk before the other copy goes
            (folder / _OLD).unlink()
        videos.join_journal()
        yield
    except sqlite3.Error as error:
        raise ValueError(f"{path}: {_explained(error)}") from error


def _explained(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what sqlite adds to it
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another run is working on this folder"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(str(error))
    return (
        f"results cannot be kept ({error}); make room and the right to write there and in the folder for "
        "temporary files, then go on with the same command"
    )


def _damaged(reason: str) -> str:
    return f"is damaged ({printable(reason[:200])}); delete it, and every video is looked at again"


def _check_or_make(db: sqlite3.Connection, path: Path, settings: Mapping[str, Any]) -> None:
    """Make the tables of a new journal; refuse one that is not ours, is damaged or of another kind of run."""
    declared = dict(db.execute("SELECT name, sql FROM journal.sqlite_master"))
    wanted = {name: f"CREATE TABLE {name} {columns}" for name, columns in _TABLES.items()}
    if not declared:
        for name, columns in _TABLES.items():
            db.execute(f"CREATE TABLE journal.{name} {columns}")
        given = [(name, json.dumps(value)) for name, value in settings.items()]
        db.executemany("INSERT INTO journal.settings VALUES (?, ?)", given)
    elif declared != wanted:
        raise ValueError(f"{path}: {_damaged('its tables are not those of this version')}")
    fault = str(db.execute("PRAGMA journal.quick_check(1)").fetchone()[0])
    if fault != "ok":
        raise ValueError(f"{path}: {_damaged(fault)}")
    found = dict(db.execute("SELECT name, substr(value, 1, 1000) FROM journal.settings LIMIT 100"))
    for name, value in settings.items():
        if found.get(name) != json.dumps(value):
            _refuse(path, name, found.get(name, "null"), value)


def _refuse(path: Path, name: str, found: str, value: Any) -> None:
    raise ValueError(
        f"{path}: belongs to a run with {name} {printable(found)}, this one has {json.dumps(value)}; "
        "choose another --out or delete that folder"
    )


# ---- journals of JSON lines, as they were before -----------------------------------------------------------


def _take_over(videos: Videos, path: Path, settings: Mapping[str, Any]) -> bool:
    """Copy what a journal of JSON lines holds into this one; False: there is none."""
    try:
        file = io.BufferedReader(open_regular(path))  # readline of an unbuffered file is slow
    except FileNotFoundError:
        return False
    with file:
        first = file.readline(_MAX_LINE_BYTES)
        header = _parse_line(first)
        for name, value in settings.items():
            if first.endswith(b"\n") and header.get(name) != value:
                _refuse(path, name, json.dumps(header.get(name))[:1000], value)
        while line := file.readline(_MAX_LINE_BYTES):
            record = _parse_line(line)
            with contextlib.suppress(  # a damaged line
                KeyError,
                TypeError,
                ValueError,
                OverflowError,
                sqlite3.IntegrityError,
                sqlite3.InterfaceError,
                sqlite3.ProgrammingError,
            ):
                videos.note(str(record["path"]), (record["size"], record["time"]), record["full"], record)
    return True


def _parse_line(line: bytes) -> dict[str, Any]:
    """The record of a line, {} when it is torn or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
