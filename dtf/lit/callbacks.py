"""What happens beside the training loop: speed, broken videos, one line per epoch."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from rich import get_console

from dtf.data.dataset import Batch, BrokenVideo
from dtf.errors import RunError
from dtf.files import replacing
from dtf.lit.survival import LastCheckpoint
from dtf.runs.folder import run_folder

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which also knows its best one again when the run's folder has been moved.

    Theirs would forget the score, and put a worse checkpoint in the place of the best one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the folder of the present run, wherever it was before."""
        assert self.dirpath is not None
        folder, models = Path(self.dirpath), state_dict["best_k_models"]

        def here(path: str) -> str:
            name = Path(path).name
            # It is deleted when there is a better one: it must be a checkpoint, and of this folder.
            if path and not re.fullmatch(r"[\w.=-]+\.ckpt", name):
                raise ValueError(f"the state of the best checkpoint is damaged: {path!r} is none")
            return str(folder / name) if path else ""

        paths = {key: here(state_dict[key]) for key in state_dict if key.endswith("_model_path")}
        models = {here(path): score for path, score in models.items()}
        known = (state_dict.get(key) for key in ("best_model_score", "kth_value"))
        scores = [*models.values(), *(score for score in known if score is not None)]
        if not all(isinstance(score, torch.Tensor) and score.ndim == 0 for score in scores):
            raise ValueError("the state of the best checkpoint is damaged: a score is no number")
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath})


def best_checkpoint(monitor: str, mode: str) -> BestCheckpoint:
    """OUTPUT/checkpoints/best.ckpt, by a metric at the end of an epoch.

    Args:
        monitor: the metric. In the settings null stands for the task's headline (`build_callbacks`).
        mode: "max" or "min".
    """
    return BestCheckpoint(
        dirpath=run_folder() / "checkpoints",
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
        # At the end of the epoch, after its validation: then the loops resume at the start of the next one.
        save_on_train_epoch_end=True,
    )


def last_checkpoint(every_n_steps: int | None = None) -> LastCheckpoint:
    """OUTPUT/checkpoints/last.ckpt, where a resumed run goes on: before and after each epoch's validation.

    Args:
        every_n_steps: write it after every so many optimiser steps as well, for long epochs. A resumed run
            goes on within the epoch.
    """
    return LastCheckpoint(run_folder() / "checkpoints" / "last.ckpt", every_n_steps)


class ProgressBar(RichProgressBar):
    """Lightning's bar: epochs count from 1, the number of the logger's folder is left out.

    There is none where the log shows no INFO (`quiet=true`).
    """

    @property
    def is_enabled(self) -> bool:
        """Whether it is drawn."""
        return super().is_enabled and log.isEnabledFor(logging.INFO)

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{last}" if last not in (None, -1) else "")
        return text.ljust(len(self.validation_description))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the bar shows beside the count."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Only the first process draws, but all take part in summing the metrics that it shows."""
        _ = trainer.callback_metrics
        super().on_train_epoch_end(trainer, pl_module)


class LearningRate(Callback):
    """Logs `train/lr` at each step: what a parameter group of scale 1 has (one schedule, so one number)."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Log it."""
        group = trainer.optimizers[0].param_groups[0]
        pl_module.log("train/lr", group["lr"] / group["lr_scale"])


class Throughput(Callback):
    """Logs `train/clips_per_s` (over all processes) and `train/data_wait`, the share of time spent waiting.

    Waiting is what the main process sees between two steps, so on a GPU that is still busy it is an upper
    bound. The times are those of an epoch's training; validation is left out.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run resumed within an epoch does not begin one."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an epoch."""
        self._waiting = self._working = 0.0
        self._clips = 0
        self._ended: float | None = time.perf_counter()
        self._started = self._ended

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the time since the last step as waiting."""
        now = time.perf_counter()
        if self._ended is not None:
            self._waiting += now - self._ended
        self._started = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step as work."""
        self._ended = time.perf_counter()
        self._working += self._ended - self._started
        self._clips += len(batch["video_index"]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation within an epoch is not waiting."""
        self._ended = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch."""
        total = self._waiting + self._working
        if self._clips:
            pl_module.log("train/clips_per_s", self._clips / total, sync_dist=True)
            pl_module.log("train/data_wait", self._waiting / total, sync_dist=True)


class BrokenVideos(Callback):
    """Names every broken training video once and stops the run when there are too many.

    Each process counts what it meets itself; at the end of an epoch they put their lists together.

    Args:
        max_bad_fraction: share of the training videos.
        folder: of the run: the list is kept there in broken_videos.txt; None: it is not.

    Attributes:
        reasons: path of a video -> what is wrong with it.
    """

    def __init__(self, max_bad_fraction: float, folder: Path | None = None) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.folder = folder
        self.reasons: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """The videos named so far."""
        return {"videos": [list(video) for video in self.reasons.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the list of a resumed run."""
        # Checkpoints had messages "path: reason" once.
        old = (message.partition(": ")[::2] for message in state_dict.get("reasons", []))
        found = [BrokenVideo(path, reason) for path, reason in (*old, *state_dict.get("videos", []))]
        if not all(isinstance(text, str) for video in found for text in video):
            raise ValueError("the list of broken videos is damaged: a path or reason is no text")
        self._add(found)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the batch's errors.

        Raises:
            RunError: too many videos are broken.
        """
        new = self._add(video for videos in batch["error"] for video in videos)
        for video in new:
            log.warning("replaced in training, it cannot be read: %s", video)
        if new:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the lists of all processes together.

        Raises:
            RunError: too many videos are broken.
        """
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, list(self.reasons.items()))
            if self._add(BrokenVideo(*video) for videos in found for video in videos):
                self._check(trainer)

    def _add(self, videos: Iterable[BrokenVideo]) -> list[BrokenVideo]:
        """Those that are new. What is wrong with a video may depend on the frames read."""
        new = []
        for video in videos:
            if video.path not in self.reasons:
                self.reasons[video.path] = video.reason
                new.append(video)
        return new

    def _check(self, trainer: pl.Trainer) -> None:
        reasons = [str(BrokenVideo(*video)) for video in self.reasons.items()]
        if self.folder is not None and trainer.is_global_zero:
            with replacing(self.folder / "broken_videos.txt") as file:
                file.writelines(f"{reason}\n" for reason in reasons)
        total = len(trainer.datamodule.index("train"))  # type: ignore[attr-defined]
        if len(reasons) > self.max_bad_fraction * total:
            shown = "; ".join(reasons[:10]) + (f"; and {len(reasons) - 10} more" if len(reasons) > 10 else "")
            raise RunError(
                f"{len(reasons)} of {total} training videos are broken, more than "
                f"data.max_bad_fraction={self.max_bad_fraction:g} allows: {shown}. "
                "Repair them, take them off the list, or raise data.max_bad_fraction"
            )


class EpochLine(Callback):
    """Prints one line per epoch, which stays when the progress bar is gone and reads well in a log file."""

    _validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What Lightning still has of an earlier validation is not this epoch's."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print it."""
        # Reading them sums over processes, so every process has to: the first one alone would wait for ever.
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero or not log.isEnabledFor(logging.INFO):
            return
        last = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
        parts = [f"epoch {trainer.current_epoch + 1}" + (f"/{last}" if last else "")]
        headline = pl_module.task.headline()

        def known(value: float) -> str:
            return headline.format(value, 1)

        for text, name, form in (
            ("loss", "train/loss_epoch", "{:.3f}".format),
            (f"train {headline.title}", f"train/{headline.name}", known),
            (f"val {headline.title}", f"val/{headline.name}", known),
            ("clips/s", "train/clips_per_s", "{:.1f}".format),
            ("data wait", "train/data_wait", "{:.0%}".format),
        ):
            if name in metrics and (self._validated or not name.startswith("val/")):
                parts.append(f"{text} {form(float(metrics[name]))}")
        self._validated = False
        # The console of the bar, which makes room.
        get_console().print("  ".join(parts), highlight=False, soft_wrap=True)


class RepeatFirstBatch(Callback):
    """Trains on the first batch again and again (`debug=overfit`): the loss of a sound network nears zero."""

    def __init__(self) -> None:
        self._first: dict[str, torch.Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Write the first batch over this one."""
        tensors: dict[str, torch.Tensor] = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
        if not self._first:
            self._first = {name: tensor.clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(self._first[name][: len(tensor)])
