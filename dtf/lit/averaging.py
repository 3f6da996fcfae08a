"""Weights averaged over the run (EMA): what is validated, tested and saved while other ones are trained."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging

from dtf.errors import RunError
from dtf.values import is_number


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging as an exponential moving average, updated after each optimiser step.

    average <- decay * average + (1 - decay) * weights, starting from the weights after the first step. The
    statistics of batch norms are averaged alike, their counters copied. Validation runs on the average; a
    checkpoint holds it as its `state_dict`, so that whoever reads one gets the average, and the trained
    weights beside it, so that a run resumes to the bit.

    Different from Lightning's own `EMAWeightAveraging`: what does not change stays exactly as it is (their
    formula lets constants drift by rounding); the average lives on the device of the network; a checkpoint
    that is tested in the process that trained it is tested on its averaged weights (theirs takes the trained
    ones), and so is one that is validated (theirs takes the last average).

    Args:
        decay: per optimiser step, in (0, 1). 0.999 remembers about 1000 steps: less for a short run.

    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, decay: float) -> None:
        if not is_number(decay) or not 0 < decay < 1:
            raise ValueError(f"ema must be null or a decay between 0 and 1 such as 0.999, got {decay!r}")
        self.decay = float(decay)
        self._swapped = False
        super().__init__(multi_avg_fn=self._update)

    @torch.no_grad()
    def _update(self, average: Any, current: Any, count: Any) -> None:
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - self.decay)
        else:
            torch._foreach_copy_(average, current)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the network, which has its device and precision by now.

        Raises:
            RunError: its weights have 16 bits, in which an average would never move.
        """
        assert self._average_model is not None
        average = self._average_model.module
        pairs = ((average.parameters(), pl_module.parameters()), (average.buffers(), pl_module.buffers()))
        for mine, theirs in (pair for both in pairs for pair in zip(*both, strict=True)):
            if theirs.is_floating_point() and theirs.element_size() < 4:
                raise RunError("ema needs weights of 32 bits: trainer.precision=bf16-mixed or 16-mixed")
            mine.data = mine.data.to(theirs)
        self._average_model.n_averaged = self._average_model.n_averaged.to(pl_module.device)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the average, where this is a validation within training."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the trained weights again."""
        if self._swapped:
            super().on_validation_epoch_end(trainer, pl_module)
            self._swapped = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """A validation that was cut off must not leave the two in each other's place."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both to go on training; to evaluate, the average is there already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
