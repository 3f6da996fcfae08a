"""What Lightning has no public way for: all uses of its private names, seen to work with 2.6.4 to 2.6.6.

`tests/lit/test_private.py` fails where a version has changed one of them.
"""

from __future__ import annotations

import subprocess
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher


def validates_now(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def take_processes(trainer: pl.Trainer) -> list[subprocess.Popen]:
    """The other processes that Lightning has started for this run, which it does not watch any more.

    It would kill this process because those have failed.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    processes, launcher.procs[:] = list(launcher.procs), []
    return processes


def set_timeout(strategy: DDPStrategy, timeout: timedelta) -> None:
    """How long processes wait for each other, for a strategy that Lightning has chosen itself."""
    assert hasattr(strategy, "_timeout"), "this version of Lightning keeps the timeout elsewhere"
    strategy._timeout = timeout


def cluster_environment(trainer: pl.Trainer) -> Any:
    """Where the run's processes come from, also for strategies of one process."""
    return trainer._accelerator_connector.cluster_environment
