"""A look at the index of an MP4 or MOV file before FFmpeg unfolds it.

Its tables are run-length coded: twenty bytes may claim 60 million samples, for which FFmpeg takes 2 GB while
it opens the file, before anybody can ask it. Only the counts are read here. Files of most other kinds store
the entries of their indexes one by one; what slips through meets the memory limit of the reading process.

Array letter: E entries of a table.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

import numpy as np

from dtf.data import bounds
from dtf.files import open_regular

MAX_INDEX_BYTES = 128 << 20
"""A `moov` or `moof` box; that of MAX_PACKETS frames has 80 MB."""

_INDEXES = frozenset({b"moov", b"moof", b"hoov"})
# FFmpeg finds an index in unused space as well.
_UNUSED = frozenset({b"free", b"skip"})
_CONTAINERS = _INDEXES | _UNUSED | {b"trak", b"mdia", b"minf", b"stbl", b"traf"}
_TABLES = frozenset({b"hdlr", b"stsz", b"stz2", b"stts", b"ctts", b"stsc", b"stco", b"co64", b"trun"})
_HEADER = struct.Struct(">I4s")
_Track = dict[bytes, list[bytes]]  # contents of its tables, by kind
# FFmpeg counts raw sound in pieces of this many samples.
_SOUND_PIECE = 1024


def index_fault(path: str | os.PathLike[str]) -> str | None:
    """Why the index of an MP4 or MOV file is not to be opened; None: nothing is wrong, or it is no such file.

    Raises:
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        size = file.seek(0, os.SEEK_END)
        fragment_samples = 0
        place = num_boxes = 0
        while place + 8 <= size:
            head = os.pread(descriptor, 20, place)
            box_bytes, kind, header_bytes = _box(head, 0, size - place)
            if box_bytes < header_bytes:
                return None  # no MP4, or one that ends here
            num_boxes += 1
            if num_boxes > 2 * bounds.MAX_PACKETS:
                return f"is cut into more than {2 * bounds.MAX_PACKETS} parts"
            inner = head[header_bytes + 4 :][:4] if kind in _UNUSED else kind
            if inner in _INDEXES:
                # What lies in a file that is cut short is read as well, as FFmpeg does.
                num_bytes = min(box_bytes, size - place)
                if num_bytes > MAX_INDEX_BYTES:
                    return f"has an index of {num_bytes} bytes (at most {MAX_INDEX_BYTES})"
                data = os.pread(descriptor, num_bytes, place)
                if b"cmov" in data[:64]:
                    return "has a compressed index"
                for tables in _tracks(data):
                    fragment_samples += sum(_count(table, 4) for table in tables.get(b"trun", ()))
                    if fault := _track_fault(tables, size):
                        return fault
                if fragment_samples > bounds.MAX_PACKETS:
                    return f"claims {fragment_samples} samples (at most {bounds.MAX_PACKETS})"
            place += box_bytes
    return None


def _box(data: bytes, place: int, left: int) -> tuple[int, bytes, int]:
    """(bytes of the box, its kind, bytes of its header); 0 bytes where there is none."""
    if len(data) - place < 8:
        return 0, b"", 8
    num_bytes, kind = _HEADER.unpack_from(data, place)
    if num_bytes == 1 and len(data) - place >= 16:
        return int.from_bytes(data[place + 8 : place + 16], "big"), kind, 16
    return num_bytes or left, kind, 8


def _tracks(data: bytes) -> list[_Track]:
    """The tables of each track; what lies outside of one counts as a track as well."""
    tracks: list[_Track] = []
    stack: list[tuple[int, int, _Track | None]] = [(0, len(data), None)]
    while stack:
        place, stop, track = stack.pop()
        while place + 8 <= stop:
            num_bytes, kind = _HEADER.unpack_from(data, place)
            header_bytes = 8
            if num_bytes < 8:
                num_bytes, kind, header_bytes = _box(data, place, stop - place)
                if num_bytes < header_bytes:
                    break
            first, end = place + header_bytes, min(place + num_bytes, stop)
            if kind in _TABLES:
                if track is None:
                    track = {}
                    tracks.append(track)
                track.setdefault(kind, []).append(data[first:end])
            elif kind == b"trak" or kind == b"traf":
                tracks.append({})
                stack.append((first, end, tracks[-1]))
            elif kind in _CONTAINERS:
                stack.append((first, end, track))
            place += num_bytes
    return tracks


def _track_fault(tables: _Track, file_bytes: int) -> str | None:
    num_samples = _most(_count(table, 8) for kind in (b"stsz", b"stz2") for table in tables.get(kind, ()))
    # A sample takes a byte, or half a byte of the table of sizes.
    if num_samples > 2 * file_bytes:
        return f"claims {num_samples} samples, more than its {file_bytes} bytes can hold"
    if _is_raw_sound(tables):  # a sample is a sound level: FFmpeg goes by chunks of them
        num_samples = _most(
            _num_pieces(_entries(runs, 3), _count(chunks, 4))
            for runs in tables.get(b"stsc", ())
            for kind in (b"stco", b"co64")
            for chunks in tables.get(kind, ())
        )
    num_shifts = _most(int(_entries(table, 2)[:, 0].sum(dtype=np.int64)) for table in tables.get(b"ctts", ()))
    if (most := max(num_samples, num_shifts)) > bounds.MAX_PACKETS:
        return f"claims {most} samples (at most {bounds.MAX_PACKETS})"
    return None


def _is_raw_sound(tables: _Track) -> bool:
    handlers = {table[8:12] for table in tables.get(b"hdlr", ())}
    return (
        b"soun" in handlers
        and b"vide" not in handlers
        and b"stts" in tables
        and all(_count(table, 4) == 1 == _count(table, 12) for table in tables[b"stts"])
    )


def _most(counts: Iterable[int]) -> int:
    return max(counts, default=0)


def _count(table: bytes, place: int) -> int:
    return int.from_bytes(table[place : place + 4], "big")


def _entries(table: bytes, columns: int) -> np.ndarray:
    """(E, columns) unsigned, as many as are there, of a table of 32-bit numbers after its count."""
    num = min(_count(table, 4), (len(table) - 8) // (4 * columns)) if len(table) >= 8 else 0
    entries = np.frombuffer(table, ">u4", num * columns, offset=8) if num else np.empty(0, ">u4")
    return entries.reshape(num, columns)


def _num_pieces(runs: np.ndarray, num_chunks: int) -> int:
    """Pieces of raw sound: runs (E, 3) are (first chunk, samples in each, description)."""
    if not len(runs):
        return 0
    runs = runs.astype(np.int64)
    lengths = np.diff(np.append(runs[:, 0], num_chunks + 1)).clip(0)
    return int(np.sum(lengths * (-(-runs[:, 1] // _SOUND_PIECE)), dtype=np.float64))
