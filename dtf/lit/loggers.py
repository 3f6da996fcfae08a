"""Loggers that write into the run's folder. `conf/logger/` names these functions."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger

from dtf.lit.command import RunError, run_folder
from dtf.lit.files import explaining


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
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(run_folder(), name="tensorboard", version="", default_hp_metric=False)


def wandb_logger(
    project: str,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool = False,
) -> Logger:
    """Weights & Biases; files in OUTPUT/wandb. A resumed run goes on with its curve.

    Args:
        project, name, group, tags: as in `wandb.init`.
        offline: keep everything in the folder; needs no account and no network. `WANDB_MODE=offline` does the
            same.

    Raises:
        RunError: there is no account on this machine and it is not offline.
        ModuleNotFoundError: the package is not installed.
    """
    from pytorch_lightning.loggers import WandbLogger

    folder = run_folder()
    mode = os.environ.get("WANDB_MODE", "online")
    offline = offline or mode in ("offline", "dryrun")
    # Constructing the logger already fails without the package, with ModuleNotFoundError.
    logger = WandbLogger(
        project=project,
        name=name or folder.name,
        # The same folder is the same run.
        id=f"{zlib.crc32(str(folder).encode()):08x}",
        save_dir=folder,
        offline=offline,
        # Said in so many words: Lightning says it by WANDB_MODE, which wandb reads once per process, so that
        # the second run of a sweep would not know.
        mode="offline" if offline else mode,
        group=group,
        tags=list(tags),
    )
    if not offline and mode != "disabled":
        import wandb

        if not wandb.api.api_key:
            raise RunError(
                "Weights & Biases knows no account here: run `wandb login`, or stay offline with "
                "logger.wandb.offline=true (or WANDB_MODE=offline)"
            )
    return logger
