"""The LightningModule: loss, metrics and optimiser around a network that knows nothing of Lightning.

Letters: B clips, C classes, T frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from dtf.data.dataset import Batch
from dtf.lit.mixing import Mixing
from dtf.lit.nonfinite import NonFiniteLoss
from dtf.lit.norms import backbone_norms
from dtf.lit.optim import OptimConfig, build_optimizer, warmup_cosine
from dtf.lit.scores import Evaluation, VideoScores


class VideoClassifier(pl.LightningModule):
    """Trains and evaluates a network (B, 3, T, H, W) -> (B, C) on batches of `dtf.data.dataset.Batch`.

    Training logs `train/loss`, `train/top1`, `train/top5`; validation and test log `val/...` and `test/...`
    over videos, each counted once, and leave the whole result in `evaluations["val" | "test"]`. Where clips
    are mixed, `train/top1` and `train/top5` count a clip's own class, whatever share of it is left.

    Args:
        network: plain module; its parameters appear in checkpoints as `network.*`.
        num_classes: C.
        optim: optimiser recipe, `dtf.lit.optim.OptimConfig` as plain data.
        label_smoothing: of the training loss, in [0, 1); on top of mixed labels.
        mixing: mixup and cutmix of training batches, arguments of `dtf.lit.mixing.Mixing`; None: neither.
        freeze_norm: keep the backbone's batch norms in evaluation mode, so that their statistics stay as they
            were loaded; their weights and biases train on. The norms inside temporal layers go on as ever: no
            pretrained weights hold statistics for them.
        nonfinite: "stop" the run at a loss that is not finite, or "skip" the step (`dtf.lit.nonfinite`).
        max_bad_fraction: share of broken videos above which an evaluation, or training, fails.
        clips_per_pass: evaluation: clips that go through the network at once; None: the batch as it comes.
        seed: what a training step draws (mixing, dropout, drop path) is a function of this, the epoch, the
            batch and the process, so that a resumed run goes on as the unbroken one would.
        description: plain data that makes checkpoints self-describing (`dtf.runs.checkpoint.describe`).
        folder: of the run, for the list of videos whose loss is not finite; None: none is written.

    Raises:
        ValueError: settings out of range, or fewer than two classes.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optim: Mapping[str, Any],
        *,
        label_smoothing: float = 0.0,
        mixing: Mapping[str, Any] | None = None,
        freeze_norm: bool = False,
        nonfinite: str = "stop",
        max_bad_fraction: float = 0.01,
        clips_per_pass: int | None = None,
        seed: int = 0,
        description: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("label_smoothing", label_smoothing), ("max_bad_fraction", max_bad_fraction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value!r}")
        if num_classes < 2:
            raise ValueError(
                f"the data has {num_classes} class, so there is nothing to tell apart: give at least two, "
                "each a folder of data.root/train or a name in data.class_names"
            )
        self.network = network
        self.optim = OptimConfig.from_mapping(optim)
        self.label_smoothing = label_smoothing
        self.mixing = Mixing.from_mapping(num_classes, mixing)
        self.freeze_norm = freeze_norm
        self.nonfinite = NonFiniteLoss(nonfinite, folder)
        self.max_bad_fraction = max_bad_fraction
        self.clips_per_pass = clips_per_pass
        self.seed = seed
        self.description = description
        self.train_metrics = MetricCollection(
            {
                "train/top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
                "train/top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
            }
        )
        self.train_loss = MeanMetric()
        self.scores = {"val": VideoScores(), "test": VideoScores()}
        self.evaluations: dict[str, Evaluation] = {}
        self.train(self.training)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> logits (B, C)."""
        return self.network(video)

    def train(self, mode: bool = True) -> VideoClassifier:
        """Training or evaluation mode, but for batch norms that are frozen."""
        super().train(mode)
        if self.freeze_norm:
            for norm in backbone_norms(self.network):
                norm.eval()
        return self

    # ---- training ------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """A run that goes on within an epoch reports the whole of it, also where no batch of it is left."""
        if self.train_loss.update_called:
            self._log_epoch(batch_size=1)

    def on_train_epoch_start(self) -> None:
        """Count anew; a run that goes on within an epoch does not begin one."""
        self.train_metrics.reset()
        self.train_loss.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Give the step a random state of its own."""
        entropy = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, logits (B, C) and classes (B,) of a training batch, which is mixed first."""
        video, target, label = self.mixing(batch["video"], batch["label"])
        logits = self.network(video)
        return F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing), logits, label

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of a batch.

        Raises:
            RunError: it is not finite and `nonfinite` says stop. No step is taken, no checkpoint touched.
        """
        self.nonfinite.before_batch(self.network)
        loss, logits, label = self.loss(batch)
        if self._is_not_finite(loss, batch, batch_idx):
            return loss
        size = len(label)
        self.train_metrics.update(logits.detach(), label)
        self.train_loss.update(loss.detach(), size)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True, batch_size=size)
        self._log_epoch(size)
        return loss

    def _log_epoch(self, batch_size: int) -> None:
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=batch_size)
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True, batch_size=batch_size)

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
        schedule = warmup_cosine(
            num_steps,
            round(self.optim.warmup_epochs * steps_per_epoch),
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
            raise ValueError("a cosine needs an end: give trainer.max_epochs or trainer.max_steps")
        return max(1, min(ends)), steps_per_epoch

    # ---- evaluation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start a validation."""
        self.scores["val"].reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect scores."""
        self._collect("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Put the scores together and log them."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Start a test."""
        self.scores["test"].reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect scores."""
        self._collect("test", batch)

    def on_test_epoch_end(self) -> None:
        """Put the scores together and log them."""
        self._finish("test")

    def _collect(self, stage: str, batch: Batch) -> None:
        # All views of a video come in one batch, which may be larger than what a training step holds.
        clips = batch["video"].split(self.clips_per_pass or len(batch["video"]))
        probabilities = torch.cat([self.network(part) for part in clips]).float().softmax(dim=1)
        errors = [str(videos[0]) if videos else "" for videos in batch["error"]]
        self.scores[stage].update(
            probabilities, batch["label"], batch["video_index"], batch["view_index"], errors
        )

    def _finish(self, stage: str) -> None:
        evaluation = self.scores[stage].compute()
        self.scores[stage].reset()
        self.evaluations[stage] = evaluation
        evaluation.check(stage, self.max_bad_fraction)
        # Every process has computed the same numbers from the scores of all.
        for name, value in evaluation.metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "top1", sync_dist=True)

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
        reduce = self.trainer.strategy.reduce
        checkpoint["train_metrics"] = [
            {key: reduce(value.clone(), reduce_op="sum") for key, value in metric.metric_state.items()}
            for metric in self._epoch_metrics()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what is no weight."""
        if "nonfinite" in checkpoint:
            self.nonfinite.load_state_dict(checkpoint["nonfinite"])
        for metric, state in zip(self._epoch_metrics(), checkpoint.get("train_metrics", ()), strict=False):
            # The sum over all processes is the first one's share; the others take part with zeros.
            for key, value in state.items():
                setattr(metric, key, value.to(metric.device) * (self.global_rank == 0))
            metric._update_count = 1

    def _epoch_metrics(self) -> list[Any]:
        return [*self.train_metrics.values(copy_state=False), self.train_loss]
