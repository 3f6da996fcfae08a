"""What the tests of the engine share: tiny settings, commands in processes of their own."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import Signals
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dtf.errors import RunError
from dtf.lit.engine import Engine
from dtf.lit.tasks.classification import Classification

REPOSITORY = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


TINY_MODEL = ["model.widths=[8,8,16,16]", "model.stem_width=8", "model.filter_groups=8"]

# Everything random at once: order, crops, flips, dropout, drop path.
FULL_RECIPE = [
    *TINY_MODEL,
    *("model.dropout=0.5", "model.drop_path_rate=0.2"),
    *("data.augment.crop=random_resized", "data.augment.flip=0.5", "data.num_workers=2"),
    *("trainer=cpu", "trainer.max_epochs=4", "trainer.log_every_n_steps=1"),
]


class StopAtStep(pl.Callback):
    """Ends a run in the middle of an epoch: `+callbacks.stop={_target_:engine.StopAtStep,step:8}`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise RunError(f"stopped at step {self.step}")


class SignalAtStep(pl.Callback):
    """Sends this process a signal, for instance
    `+callbacks.signal={_target_:engine.SignalAtStep,signal:SIGTERM,step:8}`.

    Args:
        signal: its name.
        step: optimiser steps before it, or batches of the test.
        where: "batch": as the next training batch starts; "validation": within the validation that follows;
            "test": within the test; "saving": when half of the next checkpoint is written.
    """

    def __init__(self, signal: str, step: int, where: str = "batch") -> None:
        self.signal, self.step, self.where = Signals[signal], step, where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            if self.where == "batch":
                os.kill(os.getpid(), self.signal)
            elif self.where == "saving":
                torch.save = self.save_half

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.global_step == self.step and self.where == "validation" and batch_idx == 1:
            os.kill(os.getpid(), self.signal)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if self.where == "test" and batch_idx == self.step:
            os.kill(os.getpid(), self.signal)

    def save_half(self, checkpoint, file) -> None:
        buffer = io.BytesIO()
        save_whole(checkpoint, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        os.kill(os.getpid(), self.signal)


save_whole = torch.save


def classifier(
    network: nn.Module,
    num_classes: int,
    optim: dict[str, Any],
    label_smoothing: float = 0.0,
    mixing: dict[str, Any] | None = None,
    kind: type[Engine] = Engine,
    **settings: Any,
) -> Engine:
    """A network that learns to classify, in Lightning's hands; `settings` of `Engine`."""
    data: Any = SimpleNamespace(class_names=[str(number) for number in range(num_classes)])
    task = Classification(data, label_smoothing=label_smoothing, mixing=mixing)
    return kind(network, task, optim, **settings)


def run_forked(runs: list[list[str]]) -> list[Outcome]:
    """Run `train.py` once for each list of arguments, one after the other, in processes that may be killed.

    Each is a fork of one process that has everything imported, which saves seconds. The code of a process
    that a signal has killed is minus the signal's number.
    """
    done = run_subprocess("tests/engine.py", json.dumps(runs), PYTHONPATH=f"{REPOSITORY}:{REPOSITORY}/tests")
    assert done.code == 0, done.err
    return [Outcome(*outcome) for outcome in json.loads(done.out)]


def _run_forks(runs: list[list[str]]) -> None:

    from dtf.lit import build, training  # noqa: F401

    outcomes = []
    for arguments in runs:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["train.py", *arguments]
                runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
                sys.exit()
            status = os.waitpid(child, 0)[1]
            out.seek(0)
            err.seek(0)
            outcomes.append((os.waitstatus_to_exitcode(status), out.read(), err.read()))
    print(json.dumps(outcomes))


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


def documented(page: str, part: str) -> list[str]:
    """Arguments (without "python") of the one command on a page of docs/ that has `part` in it.

    Tests run documented commands by this, with small settings appended: what the page says is what is tested.
    """
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if part in line]
    assert len(lines) == 1, f"docs/{page} has {len(lines)} commands with {part!r}: {lines}"
    words = shlex.split(lines[0], comments=True)
    # Variables for the command itself come first.
    while "=" in words[0]:
        words.pop(0)
    assert words[0] == "python", f"docs/{page}: not a python command: {lines[0]}"
    return words[1:]


if __name__ == "__main__":
    _run_forks(json.loads(sys.argv[1]))


def assert_one_line_error(
    main: Callable[[Sequence[str]], Any],
    arguments: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command ends with code 1 and one line on stderr that says `message`."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
