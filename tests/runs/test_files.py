"""Writes that fail: one line that names the file, the earlier file kept, nothing left behind.

The system itself refuses here: a limit on the size of files stands for the full disk (same place in a write,
no root needed), a file in the place of a folder for one that cannot be written, also by root.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dtf.errors import RunError
from dtf.files import replacing, write_json
from dtf.lit import loggers
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.lit.tasks.classification import Evaluation, draw_confusion, write_scores
from dtf.models import create_model, save_weights


@contextmanager
def full_disk(limit: int = 4096) -> Iterator[None]:
    """No file may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root is the user "nobody" meanwhile; others stay who they are."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def text(path: Path) -> None:
    with replacing(path) as file:
        file.write("x" * 10000)


def checkpoint(path: Path) -> None:
    # Large enough that torch's writer fails in the middle, with an error of its own over that of the file.
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)


def scores(path: Path) -> None:
    videos = np.arange(500)
    evaluation = Evaluation(videos, videos % 2, np.full((500, 2), 0.5), np.ones(500, int), {})
    write_scores(path, evaluation, ["a", "b"], [f"/videos/{i}.mp4" for i in range(500)])


def confusion(path: Path) -> None:
    draw_confusion(path, np.eye(5, dtype=np.int64), list("abcde"), "title")


def results(path: Path) -> None:
    write_json(path, {"per_class": dict.fromkeys(map(str, range(1000)), 0)})


WRITERS = [text, checkpoint, scores, confusion, results]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk(write, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("earlier")
    expected = (
        r"cannot write .*/kept: File too large; the last whole kept is kept; free some space, then go on"
    )
    with full_disk(), pytest.raises(RunError, match=expected):
        write(path)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    write(path)
    assert path.stat().st_size > 4096
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_cannot_be_written(write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*/file/x: .*another folder with output=DIR"):
        write(tmp_path / "file" / "x")


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_others_own(write, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No write is allowed, by the system itself: root, who may do anything, is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as name:  # those of pytest are closed to others
        path = Path(name, "kept")
        path.write_text("earlier")
        path.chmod(0o444)
        Path(name).chmod(0o555)
        with (
            as_somebody_else(),
            pytest.raises(RunError, match=r"cannot write .*/kept: Permission denied; the "),
        ):
            write(path)
        assert path.read_text() == "earlier"
        assert os.listdir(name) == ["kept"]
        Path(name).chmod(0o755)


def test_weights_to_share(tmp_path: Path) -> None:
    network = create_model("c2d_tiny", num_classes=2, clip_length=4)
    path = tmp_path / "model.safetensors"
    with full_disk(), pytest.raises(OSError, match=r"File too large: .*model\.safetensors"):
        save_weights(path, network, {})
    assert list(tmp_path.iterdir()) == []


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "run_folder", lambda: tmp_path)
    logger = loggers.csv_logger()
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    with full_disk():
        for step in range(1, 1000):
            logger.experiment.log_metrics({"a": 1.0}, step)
        with pytest.raises(RunError, match=r"cannot write .*csv/version_0/metrics\.csv: File too large"):
            logger.save()
        logger.finalize("failed")
        with pytest.raises(RunError, match="cannot write"):
            logger.finalize("success")
    logger.save()
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    assert len(rows) >= 1000


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UnicodeError, match="surrogates"), replacing(path, errors="strict") as file:
        file.write("\ud800")
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})
    assert list(tmp_path.iterdir()) == []
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
