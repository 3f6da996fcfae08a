"""Fixtures of the engine's tests: a tiny data set of real files, commands, one trained run."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import FULL_RECIPE, REPOSITORY, Outcome, run_subprocess

TRAINING = {"command", "tiny_run", "tiny_checkpoint"}
"""Fixtures that train, or run a command that does."""
PROCESSES = {"run_subprocess", "run_forked", "subprocess"}
"""What a module that starts processes has imported."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what trains or starts processes; `make test-quick` leaves it out.

    What is slow for another reason says so in its file: with `pytest.mark.slow`, or with `quick` (quick.py)
    where a few of many cases are enough while working.
    """
    for item in items:
        assert isinstance(item, pytest.Function)
        if TRAINING & set(item.fixturenames) or PROCESSES & set(vars(item.module)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a motion data set of 20 training, 10 validation and 20 test videos, cut to 32 pixels."""
    root = tmp_path_factory.mktemp("motion") / "tiny"
    return [
        f"data.root={root}",
        "data.clips_per_class={train:2,val:1,test:2}",
        "data.clip_length=4",
        "data.crop_px=32",
        "data.batch_size=4",
        "data.num_workers=0",
    ]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run `train.py` or `eval.py` in this process: `command("train.py", "model=c2d_tiny", ...)`."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.chdir(REPOSITORY)
    for name in ("DTF_RUN_FOLDER", "LOCAL_RANK", "HYDRA_FULL_ERROR"):
        # Registers the name, so that what a run sets is gone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            root.handlers[:], root.level = handlers, level
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def tiny_run(tiny_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of four epochs on `tiny_data` with `FULL_RECIPE`."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    done = run_subprocess("train.py", *tiny_data, *FULL_RECIPE, f"output={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_run: Path) -> Path:
    """The best checkpoint of `tiny_run`."""
    return tiny_run / "checkpoints" / "best.ckpt"
