"""Loggers that write into the run's folder. `conf/logger/` names these functions."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dtf.errors import RunError
from dtf.files import explaining
from dtf.lit.tasks.task import Task
from dtf.runs.folder import run_folder, sweep_folder
from dtf.runs.process import is_first_process

STEP_METRICS = ("train/loss", "train/lr", "train/grad_norm")
"""What is logged within an epoch; all else is logged once per epoch and drawn over epochs."""


class _Curves(CSVLogger):
    """Lightning's logger with an error that names the file."""

    def save(self) -> None:
        with explaining(Path(self.log_dir) / "metrics.csv"):
            super().save()

    def finalize(self, status: str) -> None:
        try:
            super().finalize(status)
        except RunError:
            # A run that fails has said why; its last rows are not worth another error on top.
            if status == "success":
                raise


def csv_logger() -> Logger:
    """Curves as OUTPUT/csv/version_0/metrics.csv. A resumed run starts another version; none is deleted."""
    return _Curves(run_folder(), name="csv", flush_logs_every_n_steps=20)


def tensorboard_logger() -> Logger:
    """Event files in OUTPUT/tensorboard."""
    return TensorBoardLogger(run_folder(), name="tensorboard", version="", default_hp_metric=False)


def wandb_logger(
    project: str,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool = False,
    save_git_diff: bool = False,
) -> Logger:
    """Weights & Biases; files in OUTPUT/wandb. A resumed run goes on with its curve.

    Args:
        project, tags: as in `wandb.init`.
        name: None: the run's folder.
        group: None: the sweep's folder, and no group outside of sweeps.
        offline: keep everything in the folder; needs no account and no network. `WANDB_MODE=offline` does the
            same.
        save_git_diff: let wandb upload what differs from the last commit. Without it the run says the commit
            and whether anything differs, not what.

    Raises:
        RunError: there is no account on this machine and it is not offline.
        ModuleNotFoundError: the package is not installed.
    """
    folder = run_folder()
    mode = os.environ.get("WANDB_MODE", "online")
    offline = offline or mode in ("offline", "dryrun")
    # Constructing the logger already fails without the package, with ModuleNotFoundError.
    logger = WandbLogger(
        project=project,
        name=name or _label(folder),
        id=_run_id(folder),
        save_dir=folder,
        offline=offline,
        # Said in so many words: Lightning says it by WANDB_MODE, which wandb reads once per process, so that
        # the second run of a sweep would not know.
        mode="offline" if offline else mode,
        group=group or _sweep(),
        tags=list(tags),
        settings={"disable_git": not save_git_diff},
    )
    if not offline and mode != "disabled":
        import wandb

        if not wandb.api.api_key:
            raise RunError(
                "Weights & Biases knows no account here: run `wandb login`, or stay offline with "
                "logger.wandb.offline=true (or WANDB_MODE=offline)"
            )
    return logger


def log_start(
    loggers: Iterable[Logger], task: Task, config: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Tell the dashboards what is run, and what their curves are drawn over. For the first process.

    Args:
        loggers: of the run.
        task: of the run; its measures' best values go into tables of runs.
        config: the run's settings, resolved.
        about: `dtf.lit.about.describe_run`.
    """
    for logger in loggers:
        if isinstance(logger, (WandbLogger, TensorBoardLogger)):
            logger.log_hyperparams({**config, "about": dict(about)})
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            # Lightning has drawn all over trainer/global_step.
            run.define_metric("epoch", hidden=True)
            for name in ("train/*", "val/*", "test/*", "filters/*"):
                run.define_metric(name, step_metric="epoch")
            for name in STEP_METRICS:
                run.define_metric(name, step_metric="trainer/global_step")
            # What a table of runs shows of a curve instead of its end.
            best = {measure.name: measure.mode for measure in task.measures} | {"loss": "min"}
            for name, mode in best.items():
                run.define_metric(f"val/{name}", step_metric="epoch", summary=mode)


def _sweep() -> str | None:
    """The folder of the sweep that this run belongs to."""
    folder = sweep_folder()
    return None if folder is None else _label(folder)


def _label(folder: Path) -> str:
    """A folder's name, with the day where it is only a time."""
    is_time = re.fullmatch(r"\d\d-\d\d-\d\d", folder.name)
    return f"{folder.parent.name} {folder.name}" if is_time else folder.name


def _run_id(folder: Path) -> str:
    """The same folder is the same run; a folder of the same name elsewhere is another one."""
    path = folder / "wandb" / "run_id.txt"
    if path.is_file() and re.fullmatch(r"[0-9a-f]{8}", found := path.read_text("utf-8", "replace").strip()):
        return found
    new = secrets.token_hex(4)
    # The processes after the first one, on whatever machine, log nothing and need no id.
    if is_first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new)
    return new
