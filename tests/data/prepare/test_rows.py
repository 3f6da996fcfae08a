"""The rows of a run, and the journal beside them: what it takes over, what it refuses."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from prepared import A, B, C, D, excluded, kinetics

from dtf.data.annotations import AnnotatedSet, Annotations
from dtf.data.prepare import check, main
from dtf.data.prepare.journal import open_journal
from dtf.data.prepare.rows import Videos

SETTINGS = {"dataset": "k400", "resize": None}
FOUND = {"frames": 300, "fps": 29.97, "width": 340, "height": 256, "rotation": 0, "damaged": 0}


def annotated(count):
    ids = np.array([f"{i:011d}_000000_000010" for i in range(count)], dtype=np.bytes_)
    labels = (np.arange(count) % 400).astype(np.int32)
    return AnnotatedSet([f"class {i}" for i in range(400)], {"train": Annotations(ids, labels)})


@contextlib.contextmanager
def journal(folder, count=3):
    """Videos 0.mp4, 1.mp4, ..., with the journal in a folder."""
    with contextlib.closing(Videos(annotated(count))) as videos:
        for i in range(1, count + 1):
            videos.set_path(i, f"{i - 1}.mp4")
        with open_journal(videos, folder, SETTINGS):
            yield videos


def outcomes(videos):
    return videos.db.execute("SELECT path, usable, error FROM outcomes ORDER BY number").fetchall()


@pytest.mark.slow
def test_240000_videos_take_little_memory(tmp_path):
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("the peak of memory can only be reset on Linux")

    def megabytes(field):
        return int(status.read_text().split(f"{field}:")[1].split()[0]) / 1024

    said = annotated(240_000)
    peak.write_text("5")
    before = megabytes("VmRSS")
    with contextlib.closing(Videos(said)) as videos:
        videos.db.execute("UPDATE videos SET path = CAST('train/' || name || '.mp4' AS BLOB)")
        with open_journal(videos, tmp_path, SETTINGS):
            for file in videos.files():
                if file.path.endswith("00_000000_000010.mp4"):
                    videos.note(file.path, (1, 2), False, FOUND)
            assert videos.value("SELECT total(usable) FROM outcomes") == 2400
    assert megabytes("VmHWM") - before < 50


def test_what_was_noted_is_there_when_the_process_is_killed(tmp_path):
    with journal(tmp_path) as videos:
        videos.note("0.mp4", (1, 2), False, FOUND)
        videos.note("1.mp4", (3, 4), True, {"error": "odd \udcff\n"})
        videos.note("9.mp4", (5, 6), True, {"error": "of another split"})
        shutil.copytree(tmp_path, tmp_path / "killed")  # nothing is closed, as in a process that is no more
    with journal(tmp_path / "killed") as videos:
        assert outcomes(videos) == [
            (b"0.mp4", 1, None),
            (b"1.mp4", 0, b"odd \xed\xb3\xbf\n"),
            (b"2.mp4", None, None),
        ]
        first, second, third = videos.files()
        assert (first.stamp, first.full, first.excluded) == ((1, 2), False, False)
        assert (second.stamp, second.full, second.excluded) == ((3, 4), True, True)
        assert third.stamp is None
        videos.forget_excluded()
        assert outcomes(videos) == [(b"0.mp4", 1, None), (b"1.mp4", None, None), (b"2.mp4", None, None)]
        assert videos.value("SELECT count(*) FROM journal.results") == 2


# ---- journals of JSON lines --------------------------------------------------------------------------------


def old_tree(root):
    """What `journal.jsonl`, written by the version before sqlite, is about: sizes and times as there."""
    kinetics(root, [("a", A), ("b", B), ("b", C), ("a", D)], {})
    files = {f"train/a/{A}_000000_000010.mp4": 1683, f"train/b/{B}_000000_000010.mp4": 1683}
    files |= {f"odd \udcff/{C}_0_10.mp4": 1683, f"train/a/{D}_000000_000010.mp4": 8}
    for path, size in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * size)
        os.utime(root / path, ns=(1_700_000_000_123_456_789,) * 2)
    (root / "lists").mkdir()
    shutil.copy(Path(__file__).with_name("journal.jsonl"), root / "lists")
    return root


def test_a_journal_of_json_lines_is_taken_over_once(tmp_path, monkeypatch):
    root = old_tree(tmp_path / "k")
    old = root / "lists" / "journal.jsonl"
    damaged = [b"[1]", b"{}", b"\xff", b"[" * 100_000, b'{"path": 1, "size": [], "time": 1, "full": 1}']
    damaged += [b'{"path": "x", "size": 1e999, "time": 1, "full": false, "error": "y"}', b"x" * (1 << 20)]
    damaged += [b'{"path": "x", "size": ' + b"9" * 30 + b', "time": 1, "full": false, "error": "y"}']
    old.write_bytes(old.read_bytes() + b"".join(line + b"\n" for line in damaged) + b'{"name": "torn')
    looked_at = []

    def nothing(function, jobs, **_):
        looked_at.extend(jobs)
        yield from ()

    monkeypatch.setattr(check, "run_isolated", nothing)
    for _ in range(2):
        assert main(["k400", str(root)]) == 0
        assert looked_at == []
        assert (root / "lists" / "train.txt").read_bytes() == (
            b"train/a/AAAAAAAAAAA_000000_000010.mp4 0\ntrain/b/-BBBBBBBBBB_000000_000010.mp4 1\n"
            b"odd \xff/CCCCCCCCCCC_0_10.mp4 1\n"
        )
        assert list(excluded(root)) == [f"{D}_000000_000010"]
        assert sorted(p.name for p in (root / "lists").glob("journal*")) == ["journal.sqlite"]


def test_a_journal_of_json_lines_of_another_run_is_left_alone(tmp_path, capsys):
    root = old_tree(tmp_path / "k")
    (tmp_path / "copy").mkdir()
    shutil.copytree(root / "lists", tmp_path / "copy" / "lists")
    assert main(["k400", str(root), "--resize", "32", "--out", str(tmp_path / "copy")]) == 1
    assert "journal.jsonl: belongs to a run with resize null, this one has {" in capsys.readouterr().err
    # It is still that of a run without --resize.
    with journal(tmp_path / "copy" / "lists") as videos:
        assert videos.value("SELECT count(*) FROM journal.results") == 4


# ---- journals from anywhere --------------------------------------------------------------------------------


def altered(*statements):
    """A sound journal with one result, then changed."""

    def change(path):
        with journal(path.parent) as videos:
            videos.note("0.mp4", (1, 2), False, FOUND)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            for statement in statements:
                db.execute(statement)

    return change


def spoil(path):
    altered()(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no database at all, but long enough to be one" * 100), "is damaged"),
        (spoil, "is damaged"),
        (altered("DROP TABLE results"), "its tables are not those of this version"),
        (
            altered("CREATE TRIGGER t AFTER INSERT ON results BEGIN DELETE FROM settings; END"),
            "its tables are not",
        ),
        (
            altered("DROP TABLE results", "CREATE VIEW results AS SELECT * FROM settings"),
            "its tables are not",
        ),
        (altered("UPDATE results SET frames = 'many'"), "is damaged"),
        (altered("UPDATE results SET ending = '/../../x'"), "is damaged"),
        (
            altered("UPDATE settings SET value = '\"\x1b[2J\"' WHERE name = 'dataset'"),
            "belongs to a run with dataset",
        ),
        (Path.mkdir, "results cannot be kept (unable to open database"),
    ],
)
def test_a_journal_that_cannot_be_used_is_one_line(tmp_path, capsys, make, reason):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    path = root / "lists" / "journal.sqlite"
    path.parent.mkdir()
    make(path)
    before = path.is_file() and path.read_bytes()
    assert main(["k400", str(root), "--workers", "1"]) == 1
    error = capsys.readouterr().err.partition("error: ")[2]  # after notes
    assert error.startswith(f"{path}: ")
    assert reason in error
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert re.search("delete it, and|delete that folder|go on with the same command", error)
    assert (path.is_file() and path.read_bytes()) == before


def test_a_damaged_journal_can_be_deleted(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match=r"is damaged .*; delete it, and"), journal(tmp_path):
        pass
    path.unlink()
    with journal(tmp_path) as videos:
        videos.note("0.mp4", (1, 2), False, FOUND)


def test_a_full_disk_is_one_line(tmp_path):
    reason = r"journal\.sqlite: results cannot be kept \(database or disk is full\)"

    def fill():
        with journal(tmp_path) as videos:
            videos.db.execute("PRAGMA journal.max_page_count = 1")
            for i in range(1000):
                videos.note(f"{i}.mp4", (1, 2), False, FOUND)

    with pytest.raises(ValueError, match=reason):
        fill()
