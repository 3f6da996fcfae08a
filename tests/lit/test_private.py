"""Private names of Lightning: they stand in one module, and are there in the version that is installed."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import pytorch_lightning as pl
from engine import REPOSITORY
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.strategies import DDPStrategy

from dtf.lit import private


@pytest.mark.parametrize("every", [1, 2])
def test_the_batch_before_a_validation_is_known(every: int) -> None:
    class Ask(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            answers.append(private.validates_now(trainer))

    answers: list[bool] = []
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=0,
        check_val_every_n_epoch=every, enable_model_summary=False, callbacks=[Ask()], **settings,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert answers == [False, every == 1, False, True]


def test_processes_timeouts_and_environments_are_where_they_were() -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    assert isinstance(trainer.strategy, DDPStrategy)
    private.set_timeout(trainer.strategy, timedelta(minutes=3))
    assert trainer.strategy._timeout == timedelta(minutes=3)
    assert DDPStrategy(timeout=timedelta(minutes=3))._timeout == timedelta(minutes=3), "what Lightning sets"
    assert isinstance(private.cluster_environment(trainer), LightningEnvironment)
    trainer.strategy._configure_launcher()
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, private._SubprocessScriptLauncher)
    process = object()
    launcher.procs.append(process)  # type: ignore[arg-type]
    assert private.take_processes(trainer) == [process]
    assert launcher.procs == []
    assert private.take_processes(pl.Trainer(accelerator="cpu", logger=False)) == []


def test_no_other_module_uses_them() -> None:
    private_name = re.compile(r"(trainer|strategy|launcher|loop|metric|writer|logger)(\.\w+)*\._[a-z]")
    for path in (REPOSITORY / "dtf" / "lit").rglob("*.py"):
        if path.name != "private.py":
            found = private_name.search(path.read_text("utf-8"))
            assert found is None, f"{path.name}: {found}"
