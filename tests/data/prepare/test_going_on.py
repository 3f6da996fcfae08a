"""A run that was stopped, killed, repeated or runs twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pool_functions
import pytest
from prepared import A, D, excluded, kinetics, names_of, read_lists
from video_files import write_video

import dtf.data.prepare.jobs
from dtf.data.annotations import AnnotatedSet, Annotations
from dtf.data.decode import VideoReader
from dtf.data.prepare import check, main
from dtf.data.prepare.jobs import Encoding, Resize, resize
from dtf.data.prepare.journal import open_journal
from dtf.data.prepare.rows import Videos


def test_a_second_run_looks_at_nothing_again(layouts, tmp_path, monkeypatch):
    root = tmp_path / "k"
    shutil.copytree(layouts("diving48").root, root, symlinks=True)
    before = read_lists(root, ("train", "test"))

    jobs = []
    real = check.run_isolated

    def counting(function, todo, **kwargs):
        todo = list(todo)
        jobs.extend(todo)
        return real(function, iter(todo), **kwargs)

    monkeypatch.setattr(check, "run_isolated", counting)
    assert main(["diving48", str(root), "--workers", "1"]) == 0
    assert jobs == []
    assert read_lists(root, ("train", "test")) == before
    # A file that was replaced, and a result that was not kept: only these are looked at again.
    fixed = next(
        path for path in sorted((root / "rgb").glob("*.mp4")) if path.exists() and not path.stat().st_size
    )
    write_video(fixed, 5)
    lost = f"rgb/{layouts('diving48').listed['train'][0]}.mp4"
    with contextlib.closing(sqlite3.connect(root / "lists" / "journal.sqlite", isolation_level=None)) as db:
        assert db.execute("DELETE FROM results WHERE path = ?", (lost.encode(),)).rowcount == 1
    assert main(["diving48", str(root), "--workers", "1"]) == 0
    assert {os.path.basename(job.path) for job in jobs} == {fixed.name, os.path.basename(lost)}
    assert fixed.stem in names_of((root / "lists" / "train.txt").read_text().splitlines())
    # What failed may be tried again.
    jobs.clear()
    assert main(["diving48", str(root), "--workers", "1", "--retry-failed"]) == 0
    assert (
        len(jobs)
        == sum("missing" not in r and "link" not in r for r in layouts("diving48").excluded.values()) - 1
    )


@pytest.mark.parametrize("resizing", [False, True])
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch, resizing):
    files = {f"{i:011d}_000000_000010.mp4": i for i in range(60)}
    root = kinetics(tmp_path / "k", [("a", name[:11]) for name in files], files)
    out = tmp_path / "copy" if resizing else root
    command = ["k400", str(root), "--workers", "2"]
    command += ["--resize", "24", "--out", str(out)] if resizing else []
    journal = out / "lists" / "journal.sqlite"
    log = journal.with_name("journal.sqlite-wal")  # grows by a page or two with each result
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    seen = 0
    for kill_at in (5, 25):
        process = context.Process(target=pool_functions.prepare, args=(command,))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > (kill_at - seen) * 2 * 4120:
                process.kill()
            time.sleep(0.001)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        with contextlib.closing(sqlite3.connect(journal)) as db:
            (kept,) = db.execute("SELECT count(*) FROM results").fetchone()
        assert seen < kept < 60
        seen = kept
        assert not (out / "lists" / "train.txt").exists()
    jobs = 0
    real = check.run_isolated

    def counting(function, todo, **kwargs):
        nonlocal jobs
        todo = list(todo)
        jobs += len(todo)
        return real(function, iter(todo), **kwargs)

    monkeypatch.setattr(check, "run_isolated", counting)
    assert main(command) == 0
    lines = (out / "lists" / "train.txt").read_text().splitlines()
    assert names_of(lines) == [Path(name).stem for name in files]
    assert jobs == 60 - seen  # nothing was done twice
    if resizing:
        assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
        for path in sorted(out.glob("*.mp4"))[::20]:
            with VideoReader(path) as reader:
                assert tuple(reader.read([0]).shape) == (1, 3, 24, 32)


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path, capsys):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    settings = {"dataset": "k400", "resize": None}
    nothing = AnnotatedSet(["a"], {"train": Annotations(np.array([], "S1"), np.array([], np.int32))})
    path = root / "lists" / "journal.sqlite"
    with contextlib.closing(Videos(nothing)) as videos, open_journal(videos, path.parent, settings):
        assert main(["k400", str(root)]) == 1
        assert f"error: {path}: another run is working on this folder\n" in capsys.readouterr().err
        read = f"import sqlite3; sqlite3.connect({str(path)!r}, 0).execute('SELECT * FROM results')"
        other = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=False)
        assert "database is locked" in other.stderr
    assert main(["k400", str(root), "--workers", "1"]) == 0


def test_a_copy_with_other_settings_is_refused(tmp_path, capsys):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    assert main(["k400", str(root), "--resize", "32", "--workers", "1"]) == 0
    assert (tmp_path / "k_32" / "lists" / "train.txt").read_text() == f"{A}_000000_000010.mp4 0\n"
    capsys.readouterr()
    assert main(["k400", str(root), "--resize", "32", "--crf", "30", "--workers", "1"]) == 1
    assert "belongs to a run with resize" in capsys.readouterr().err


def test_decoders_that_hang_or_crash_cost_one_video(tmp_path, monkeypatch):
    ids = (A, "HANGAAAAAAA", "CRASHAAAAAA", D)
    files = {f"{video}_000000_000010.mp4": i for i, video in enumerate(ids)}
    root = kinetics(tmp_path / "k", [("a", name[:11]) for name in files], files)
    monkeypatch.setattr(check, "probe", pool_functions.probe_with_bad_decoder)
    assert main(["k400", str(root), "--workers", "2", "--time-limit", "3"]) == 0
    assert names_of(read_lists(root, ["train"])["train"]) == [f"{A}_000000_000010", f"{D}_000000_000010"]
    assert excluded(root) == {
        "HANGAAAAAAA_000000_000010": "took longer than 3 s and was cut off",
        "CRASHAAAAAA_000000_000010": "crashed its process (SIGSEGV)",
    }


def test_a_full_disk_stops_the_run_with_one_line(tmp_path, capsys, monkeypatch):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    out = tmp_path / "copy"
    (out / "train").mkdir(parents=True)
    full = OSError(28, "No space left on device")

    def replace(*_paths):
        raise full

    monkeypatch.setattr(dtf.data.prepare.jobs.os, "replace", replace)
    with pytest.raises(dtf.data.prepare.jobs.Stop, match="No space left on device"):
        resize(Resize(str(root / f"{A}_000000_000010.mp4"), str(out / "x"), Encoding(24)))
    assert list(out.glob("*.mp4")) == []
