"""A process that no longer answers (SIGSTOP) does not hold the others for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from engine import SignalAtStep, classifier
from omegaconf import OmegaConf
from test_engine import SGD, tiny
from test_two_processes import Data

from dtf.lit import build
from dtf.lit.survival import LastCheckpoint
from dtf.runs.errors import one_line_errors

pytestmark = pytest.mark.slow  # starts processes that stop

LAST = Path("checkpoints", "last.ckpt")


def settings(**other) -> dict:
    return {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 2, **other}


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    stop = [SignalAtStep("SIGSTOP", 2)] if rank == 1 else []
    callbacks: list[pl.Callback] = [LastCheckpoint(folder / LAST, every_n_steps=1), *stop]
    with open(folder / f"{rank}.err", "w") as err, redirect_stderr(err), one_line_errors():
        config = OmegaConf.create(settings(collective_timeout_minutes=0.1, limit_val_batches=0))
        trainer = build.build_trainer(config, folder, callbacks, [])
        with build.running(trainer):
            trainer.fit(classifier(tiny(), 2, SGD), datamodule=Data(12, 7, 2))


def test_the_others_end_in_time_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A fork has everything imported; where there is a GPU in use it cannot have that.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
    running, stopped = (context.Process(target=work, args=(rank, port, tmp_path)) for rank in range(2))
    running.start()
    stopped.start()
    try:
        running.join(120)
        assert stopped.is_alive(), "it was stopped, not ended"
    finally:
        for process in (running, stopped):
            process.kill()
            process.join()
    assert running.exitcode == 1, "it has not been killed: it ended by itself"
    lines = [line for line in (tmp_path / "0.err").read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "has not answered within the time that trainer.collective_timeout_minutes allows" in lines[0]
    assert "Traceback" not in (tmp_path / "0.err").read_text()
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 2
    assert stopped.exitcode == -signal.SIGKILL


def test_the_limit_holds_for_every_way_to_several_processes(tmp_path: Path) -> None:
    for strategy in ("ddp", "auto"):
        for given, seconds in (({}, 1800), ({"collective_timeout_minutes": 2}, 120)):
            config = OmegaConf.create(settings(**given) | {"strategy": strategy})
            trainer = build.build_trainer(config, tmp_path, [], [])
            assert trainer.strategy._timeout.total_seconds() == seconds


@pytest.mark.parametrize("minutes", [0, -1, "long", True, None, float("nan")])
def test_a_limit_that_is_none_is_refused(minutes, tmp_path: Path) -> None:
    config = OmegaConf.create(settings(collective_timeout_minutes=minutes))
    with pytest.raises(ValueError, match="collective_timeout_minutes must be minutes above 0"):
        build.build_trainer(config, tmp_path, [], [])
