"""What a run that is stopped from outside leaves behind, so that it goes on as if nothing had happened.

`LastCheckpoint` writes OUTPUT/checkpoints/last.ckpt at every point where a run may go on; `StopOnSignal`
makes SIGTERM (preemption, Slurm's time limit), SIGUSR1 (Slurm's early warning) and Ctrl-C write it at the
next step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.callbacks import Checkpoint

from dtf.data.dataset import Batch
from dtf.lit.private import validates_now
from dtf.lit.report import shown
from dtf.runs.folder import sweep_folder
from dtf.runs.process import STOP_SIGNALS
from dtf.text import program


class Stopped(SystemExit):
    """A run that a signal has ended, with exit code 128 + number of the signal, as a shell would say it.

    No Exception: a run that was stopped has not failed. A sweep knows it by this code, and stops as well.
    """


class LastCheckpoint(Checkpoint):
    """Writes one file where a resumed run goes on, over and over.

    At the end of every epoch; at the end of its training, before its validation, so that a run that is killed
    in a long validation only repeats that; and every so many steps.

    Args:
        path: the file.
        every_n_steps: optimiser steps between two writes within an epoch; None: none.

    Attributes:
        metrics: all that was logged, at the end of the last epoch: a run that goes on with nothing left to
            train reports them.

    Raises:
        ValueError: every_n_steps is not positive.
    """

    def __init__(self, path: Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or null, got {every_n_steps!r}")
        self.path = path
        self.every_n_steps = every_n_steps
        self.metrics: dict[str, float] = {}
        self._before_validation = False

    def state_dict(self) -> dict[str, Any]:
        """The metrics."""
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self.metrics = {str(name): float(value) for name, value in state_dict["metrics"].items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear away what a run that was killed while it wrote has left."""
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.ckpt.*.part"):
                partial.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Write it within an epoch, or before the epoch's validation."""
        if trainer.is_last_batch:
            if validates_now(trainer):
                self._before_validation = True
                trainer.save_checkpoint(self.path)
                self._before_validation = False
        elif (
            steps_after(trainer, batch_idx) and trainer.global_step % (self.every_n_steps or sys.maxsize) == 0
        ):
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it; the validation is done."""
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say that the epoch's batches are done and its validation is not.

        Lightning has no such state for a file written here: it would go on with the next epoch, and the
        validation, with it perhaps the best checkpoint, would be lost. It has one for a file written within a
        validation, which it repeats from its start: this is it.
        """
        if not self._before_validation:
            return
        loops = checkpoint["loops"]["fit_loop"]
        for scope in ("total", "current"):
            loops["epoch_loop.batch_progress"][scope]["completed"] += 1
            within = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"][scope] = within


class StopOnSignal(Checkpoint):
    """Finishes the step, writes last.ckpt and ends the run when a signal asks for it.

    A second Ctrl-C, a second after the first or later, ends at once. With several processes one signal to any
    of them stops all of them at the same step. Within a Slurm job, SIGUSR1 also puts the job back into the
    queue. Outside training nothing is to be saved: there SIGTERM ends at once.

    Lightning's own handler is replaced: it talks to the other processes in the middle of whatever they do,
    and its exit code says that all is well.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._received = 0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen. Here, because Lightning's handler comes after the earlier hooks."""
        self._received = 0
        for signum in STOP_SIGNALS:
            _handle(signum, self._note)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation of its own is like a test."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is to be saved."""
        if self._received:  # after the last epoch
            _end_now(self._received)
        _handle(signal.SIGTERM, _end_now)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save and stop, except where the epoch or its validation is about to be saved anyway."""
        if not trainer.is_last_batch and steps_after(trainer, batch_idx):
            signum = self._agreed(trainer)
            if signum:
                if last := _last(trainer):
                    trainer.save_checkpoint(last.path)
                self._stop(trainer, signum)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stop; `LastCheckpoint` has saved before the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            signum = self._agreed(trainer)
            if signum:
                self._stop(trainer, signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop; `LastCheckpoint`, which comes first, has saved."""
        signum = self._agreed(trainer)
        if signum:
            self._stop(trainer, signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received and signum == signal.SIGINT and now - self._since > 1:
            raise KeyboardInterrupt
        if not self._received:
            self._received, self._since = signum, now
            again = "; Ctrl-C again ends at once" if signum == signal.SIGINT else ""
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"{signal.Signals(signum).name}: stops after this step{again}\n".encode())

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that one of the processes has received, 0 for none."""
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)

    def _stop(self, trainer: pl.Trainer, signum: int) -> NoReturn:
        started_here = _starts_processes(trainer)
        if trainer.is_global_zero:
            last = _last(trainer)
            saved = shown(last.path) if last and last.path.is_file() else "nothing"
            command = program("train") if started_here else "the same command with"
            how = "the same command" if sweep_folder() else f"{command} resume={shown(self.folder)}"
            does = "starts again" if saved == "nothing" else "goes on"
            print(
                f"stopped by {signal.Signals(signum).name} in epoch {trainer.current_epoch + 1} after step "
                f"{trainer.global_step}; saved: {saved}; {how} {does}",
                file=sys.stderr,
            )
            if signal.Signals(signum).name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ:
                _requeue()
        # Lightning kills a run one of whose processes fails; the first one says what the run ended with.
        raise Stopped(0 if started_here and trainer.local_rank > 0 else 128 + signum)


@contextmanager
def stoppable(trainer: pl.Trainer, say: Callable[[], str]) -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C end at once what saves its work as it goes.

    Exit codes and what becomes of a Slurm job are those of `StopOnSignal`.

    Args:
        trainer: at work inside.
        say: what is saved and how to go on, for the line that is printed.
    """
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    for signum in STOP_SIGNALS:
        _handle(signum, _end_now)
    try:
        yield
    except Stopped as stop:
        received = signal.Signals(int(str(stop.code)) - 128)
        if trainer.is_global_zero:
            print(f"stopped by {received.name}; {say()}", file=sys.stderr)
            if received.name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ:
                _requeue()
        elif _starts_processes(trainer) and trainer.local_rank > 0:
            raise Stopped(0) from None  # the first process says what the run ended with
        raise
    finally:
        for signum, handler in before.items():
            _handle(signum, handler)


def _starts_processes(trainer: pl.Trainer) -> bool:
    """Whether the first process of a machine has started the others."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is None or isinstance(environment, LightningEnvironment)


def _last(trainer: pl.Trainer) -> LastCheckpoint | None:
    """None with callbacks.last=null, and for a search of learning rates: nothing is to be saved."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)


def steps_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser has stepped after this batch (which is not the last one of an epoch)."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _handle(signum: int, handler: Any) -> None:
    # Python allows it to the main thread alone; a launcher of sweeps may run in another.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)


def _end_now(signum: int, frame: FrameType | None = None) -> NoReturn:
    raise Stopped(128 + signum)


def _requeue() -> None:
    """Put this Slurm job back into the queue; its folder is that of the job, so it goes on by itself."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    print(f"job {job} " + (f"is not requeued: {problem}" if problem else "is requeued"), file=sys.stderr)
