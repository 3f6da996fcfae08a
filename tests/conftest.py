"""What several tests of the engine need: a tiny data set of real files, commands, one trained run."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


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


TINY_MODEL = ["model.widths=[8,8,16,16]", "model.stem_width=8", "model.filter_groups=8"]

# Everything random at once: order, crops, flips, dropout, drop path.
FULL_RECIPE = [
    *TINY_MODEL,
    *("model.dropout=0.5", "model.drop_path_rate=0.2"),
    *("data.augment.crop=random_resized", "data.augment.flip=0.5", "data.num_workers=2"),
    *("trainer=cpu", "trainer.max_epochs=4", "trainer.log_every_n_steps=1"),
]


def run_subprocess(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> Outcome:
    """Run a Python command of the repository in a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def clean_environment() -> dict[str, str]:
    """The environment without what a run leaves in it; one thread, so that sums are the same everywhere."""
    drop = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HYDRA_FULL_ERROR")
    kept = {
        k: v for k, v in os.environ.items() if k not in drop and not k.startswith(("DTF_", "PL_", "WANDB"))
    }
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


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
