"""The LightningModule: a network that knows nothing of Lightning, trained and evaluated on a task.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import Metric

from dtf.data.dataset import Batch
from dtf.lit.nonfinite import NonFiniteLoss
from dtf.lit.optim import OptimConfig, build_optimizer, learning_rate
from dtf.lit.tasks.task import Result, Task

LOSS = "train/loss_epoch"


class Mean(Metric):
    """Mean over the clips of an epoch on all processes, from sums that a checkpoint can hold.

    torchmetrics' own takes up no sums again.
    """

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, count: torch.Tensor | int) -> None:
        """Add the sum over so many clips."""
        self.total += total
        self.count += count

    def compute(self) -> torch.Tensor:
        """The mean."""
        return self.total / self.count

    def sums(self) -> dict[str, torch.Tensor]:
        """The sums over all processes, every one of which must call it."""
        with self.sync_context():
            return {"total": self.total.clone(), "count": self.count.clone()}


class Engine(pl.LightningModule):
    """Trains and evaluates a network on batches of `dtf.data.dataset.Batch`, as its task says.

    Training logs `train/loss` and what the task counts, `train/NAME`; validation and test log `val/...` and
    `test/...` over videos, each counted once, and leave the whole result in `results["val" | "test"]`.

    Args:
        network: plain module; its parameters appear in checkpoints as `network.*`.
        task: says what the loss is and what is evaluated.
        optim: optimiser recipe, `dtf.lit.optim.OptimConfig` as plain data.
        nonfinite: "stop" the run at a loss that is not finite, or "skip" the step (`dtf.lit.nonfinite`).
        max_bad_fraction: share of broken videos above which an evaluation fails.
        clips_per_pass: evaluation: clips that go through the network at once; None: the batch as it comes.
        seed: what a training step draws (mixing, dropout, drop path) is a function of this, the epoch, the
            batch and the process, so that a resumed run goes on as the unbroken one would.
        description: plain data that makes checkpoints self-describing (`dtf.runs.checkpoint.describe`).
        folder: of the run, for the list of videos whose loss is not finite; None: none is written.

    Raises:
        ValueError: settings out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        optim: Mapping[str, Any],
        *,
        nonfinite: str = "stop",
        max_bad_fraction: float = 0.01,
        clips_per_pass: int | None = None,
        seed: int = 0,
        description: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in 0..1, got {max_bad_fraction!r}")
        self.network = network
        self.task = task
        self.optim = OptimConfig.from_mapping(optim)
        self.nonfinite = NonFiniteLoss(nonfinite, folder)
        self.max_bad_fraction = max_bad_fraction
        self.clips_per_pass = clips_per_pass
        self.seed = seed
        self.description = description
        # The order of files that were written before the means had names.
        self.means = nn.ModuleDict({**{f"train/{name}": Mean() for name in task.counted}, LOSS: Mean()})
        self.collectors = {stage: task.collector() for stage in ("val", "test")}
        self.results: dict[str, Result] = {}

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> outputs (B, ...), in pieces of `clips_per_pass` clips."""
        # All views of a video come in one batch, which may be larger than what a training step holds.
        return torch.cat([self.network(part) for part in video.split(self.clips_per_pass or len(video))])

    # ---- training ------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """A run that goes on within an epoch reports the whole of it, also where no batch of it is left."""
        if self._mean(LOSS).update_called:
            self._log_epoch(batch_size=1)

    def on_train_epoch_start(self) -> None:
        """Count anew; a run that goes on within an epoch does not begin one."""
        for name in self.means:
            self._mean(name).reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Give the step a random state of its own."""
        entropy = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of a batch.

        Raises:
            RunError: it is not finite and `nonfinite` says stop. No step is taken, no checkpoint touched.
        """
        self.nonfinite.before_batch(self.network)
        step = self.task.loss(self.network, batch)
        if self._is_not_finite(step.loss, batch, batch_idx):
            return step.loss
        loss = step.loss.detach()
        self._mean(LOSS).update(loss * step.size, step.size)
        for name, total in step.sums.items():
            self._mean(f"train/{name}").update(total, step.size)
        self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True, batch_size=step.size)
        self._log_epoch(step.size)
        return step.loss

    def _log_epoch(self, batch_size: int) -> None:
        for name in self.means:
            self.log(name, self._mean(name), on_step=False, on_epoch=True, batch_size=batch_size)

    def _mean(self, name: str) -> Mean:
        mean = self.means[name]
        assert isinstance(mean, Mean)
        return mean

    def _is_not_finite(self, loss: torch.Tensor, batch: Batch, batch_idx: int) -> bool:
        where = f"epoch {self.current_epoch}, batch {batch_idx}"
        videos = batch["video_index"]
        return self.nonfinite.found(loss, where, lambda: self._video_paths("train", videos.tolist()))

    def on_after_backward(self) -> None:
        """Undo what a batch whose loss is not finite has done to batch norms."""
        self.nonfinite.after_backward()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out the step of a loss that is not finite."""
        self.nonfinite.before_step(optimizer)

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the recipe, stepped with every optimiser step."""
        optimizer = build_optimizer(self.network, self.optim)
        num_steps, steps_per_epoch = self._num_steps()
        cooldown_steps = round(self.optim.cooldown_epochs * steps_per_epoch)
        warmup_steps = round(self.optim.warmup_epochs * steps_per_epoch)
        # A warm-up alone may fill a run: a few steps to try something are one.
        if cooldown_steps and warmup_steps + cooldown_steps >= num_steps:
            raise ValueError(
                f"optim.cooldown_epochs={self.optim.cooldown_epochs:g} leaves nothing of a run of "
                f"{num_steps / steps_per_epoch:g} epochs for the schedule after "
                f"warmup_epochs={self.optim.warmup_epochs:g}: lower one of the two, or raise "
                "trainer.max_epochs"
            )
        schedule = learning_rate(
            self.optim.schedule,
            num_steps - cooldown_steps,
            warmup_steps,
            self.optim.warmup_start,
            self.optim.min_lr,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _num_steps(self) -> tuple[int, int]:
        """Optimiser steps of the run and of an epoch.

        Not `trainer.estimated_stepping_batches`: that one sets up the loader before a resumed run has
        restored its place, so that a run resumed within an epoch would begin that epoch again.
        """
        trainer = self.trainer
        datamodule = getattr(trainer, "datamodule")  # noqa: B009 - Lightning sets it without declaring it
        batches, limit = len(datamodule.train_dataloader()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps_per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        ends = []
        if trainer.max_epochs not in (None, -1):
            ends.append(trainer.max_epochs * steps_per_epoch)
        if trainer.max_steps != -1:
            ends.append(trainer.max_steps)
        if not ends:
            raise ValueError("a schedule needs an end: give trainer.max_epochs or trainer.max_steps")
        return max(1, min(ends)), steps_per_epoch

    # ---- evaluation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start a validation."""
        self.collectors["val"].reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect."""
        self.collectors["val"].update(self, batch)

    def on_validation_epoch_end(self) -> None:
        """Put together what was collected and log it."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Start a test."""
        self.collectors["test"].reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect."""
        self.collectors["test"].update(self, batch)

    def on_test_epoch_end(self) -> None:
        """Put together what was collected and log it."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        result = self.collectors[stage].compute()
        self.collectors[stage].reset()
        self.results[stage] = result
        result.check(stage, self.max_bad_fraction)
        headline = self.task.headline().name
        # Every process has computed the same numbers from what all have collected.
        for name, value in result.metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == headline, sync_dist=True)

    def _video_paths(self, stage: str, indices: Sequence[int]) -> list[str]:
        datamodule = getattr(self.trainer, "datamodule", None)
        return [datamodule.video_path(stage, i) if datamodule else str(i) for i in indices]

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the file holds."""
        if self.description is not None:
            checkpoint["dtf"] = self.description
        checkpoint["nonfinite"] = self.nonfinite.state_dict()
        # Sums over clips; every process is here.
        checkpoint["train_metrics"] = {name: self._mean(name).sums() for name in self.means}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what is no weight."""
        if "nonfinite" in checkpoint:
            self.nonfinite.load_state_dict(checkpoint["nonfinite"])
        for name, sums in self.sums_of(checkpoint.get("train_metrics", {})).items():
            mean = self._mean(name)
            # The sum over all processes is the first one's share; the others take part with zeros.
            share = float(self.global_rank == 0)
            mean.update(sums["total"].to(mean.device) * share, sums["count"].to(mean.device) * share)

    def sums_of(self, found: Any) -> dict[str, dict[str, torch.Tensor]]:
        """The sums in a checkpoint, by the names of `means`; from before those had names, in their order.

        Raises:
            ValueError: it has sums of something else.
        """
        if isinstance(found, list):
            found = dict(zip(self.means, map(_sums_of_torchmetrics, found), strict=True))
        if not isinstance(found, dict) or not found.keys() <= set(self.means.keys()):
            raise ValueError(f"sums of {', '.join(self.means)} are wanted")
        return found


def _sums_of_torchmetrics(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums in files that were written before there were tasks: an accuracy's or a mean's state."""
    if "tp" in state:
        return {"total": state["tp"].sum(), "count": (state["tp"] + state["fn"]).sum()}
    return {"total": state["mean_value"], "count": state["weight"]}
