"""Learning-rate range test: `python train.py find_lr=100` instead of training.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186. Not Lightning's own
`Tuner.lr_find`: it gives every parameter group the same rate, whatever `optim.lr_scale` and
`optim.layer_decay` say; its running average lags by 50 steps; and it takes the slope over the rate instead of
its logarithm, which favours small rates.
"""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from dtf.data.dataset import Batch
from dtf.errors import RunError
from dtf.files import replacing
from dtf.lit.engine import Engine
from dtf.lit.optim import build_optimizer
from dtf.text import markup
from dtf.values import is_integer

LOWEST, HIGHEST = 1e-6, 10.0
"""Learning rates of the first and the last step."""

_DIVERGED = 4.0  # times the least smoothed loss, and above the first one: the end


class LearningRateSearch(Engine):
    """Trains with a learning rate that grows by the same factor each step, and remembers the losses.

    Attributes:
        num_steps: optimiser steps from LOWEST to HIGHEST.
        losses: of each optimiser step, before it was taken; mean over accumulated batches and processes.
    """

    num_steps: int = 100

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self._parts: list[torch.Tensor] = []

    def rate(self, step: int) -> float:
        """Learning rate of a parameter group of scale 1 at an optimiser step."""
        return LOWEST * (HIGHEST / LOWEST) ** (step / max(1, self.num_steps - 1))

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser with its groups, whose rates all follow `rate`."""
        optimizer = build_optimizer(self.network, replace(self.optim, lr=1.0))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of a batch, which may be anything."""
        loss = self.task.loss(self.network, batch).loss
        self._parts.append(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After an optimiser step: remember its loss, stop where it diverges."""
        if self.trainer.global_step == len(self.losses):
            return
        self.losses.append(torch.stack(self._parts).mean().item())
        self._parts.clear()
        smooth = smoothed(self.losses, self.num_steps)
        # Every process has the same losses and so the same opinion.
        if not math.isfinite(smooth[-1]) or smooth[-1] > max(_DIVERGED * min(smooth), smooth[0]):
            self.trainer.should_stop = True


def smoothed(losses: list[float], num_steps: int) -> list[float]:
    """The losses, each the mean of those around it under a bell curve as wide as a 25th of the search."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / (num_steps / 25)) ** 2)
    return (weights @ np.array(losses) / weights.sum(axis=1)).tolist()


def suggestion(rates: list[float], losses: list[float]) -> int | None:
    """The step at which the smoothed loss falls fastest over the logarithm of the learning rate.

    Args:
        rates: of each step, growing.
        losses: smoothed.

    Returns:
        Its index, None where the loss never falls.
    """
    # Behind the least one, a loss that blew up may fall fast.
    bottom = min(range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
    slopes = {
        i: (losses[i + 1] - losses[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) for i in range(1, bottom)
    }
    best = min(slopes, key=lambda i: slopes[i], default=None)
    return best if best is not None and slopes[best] < 0 else None


def find_lr(model: LearningRateSearch, data: Any, cfg: DictConfig, folder: Path) -> dict[str, float]:
    """Search, write lr_find.csv and lr_find.png into the run's folder, print what was found.

    Args:
        model: of fresh weights. They are of no use afterwards, and nothing saves them.
        data: the data module.
        cfg: the run's config; `find_lr` is the number of steps.
        folder: of the run, without checkpoints.

    Returns:
        "find_lr/lr": the suggested learning rate, nan where there is none.

    Raises:
        RunError: the folder is that of a run that has been trained.
    """
    from dtf.lit import build
    from dtf.lit.callbacks import BrokenVideos, ProgressBar
    from dtf.lit.norms import FreezeNorm

    if (folder / "checkpoints").exists():
        raise RunError(
            f"{folder} holds a trained run: search in a folder of its own, without output= and resume="
        )
    if not is_integer(cfg.find_lr) or cfg.find_lr < 20:
        raise ValueError(f"find_lr must be a number of steps, 20 or more (100 is usual), got {cfg.find_lr!r}")
    model.num_steps = cfg.find_lr
    settings: Any = {"max_steps": cfg.find_lr, "max_epochs": cfg.find_lr, "limit_val_batches": 0}
    trainer_cfg: Any = OmegaConf.merge(cfg.trainer, settings)
    callbacks: list[pl.Callback] = [ProgressBar(), BrokenVideos(data.max_bad_fraction, folder)]
    if cfg.norm.freeze:
        callbacks.append(FreezeNorm())
    trainer = build.build_trainer(trainer_cfg, folder, callbacks, [])
    with build.running(trainer):
        trainer.fit(model, datamodule=data)

    losses, smooth = model.losses, smoothed(model.losses, cfg.find_lr)
    rates = [model.rate(step) for step in range(len(losses))]
    best = suggestion(rates, smooth)
    if trainer.is_global_zero:
        with replacing(folder / "lr_find.csv", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["lr", "loss", "smoothed"])
            writer.writerows(zip(rates, losses, smooth, strict=True))
        draw(folder / "lr_find.png", rates, losses, smooth, best)
        _print(folder, rates, smooth, best, cfg.find_lr)
    return {"find_lr/lr": math.nan if best is None else rates[best]}


def draw(path: Path, rates: list[float], losses: list[float], smooth: list[float], best: int | None) -> None:
    """Losses over learning rates, the suggested one marked."""
    from dtf.view.figures import new_figure, save

    figure = new_figure(7, 4, "constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.7", label="loss of a step")
    axes.plot(rates, smooth, label="smoothed")
    if best is not None:
        axes.axvline(rates[best], color="tab:red", linestyle="--", linewidth=1)
        axes.plot(rates[best], smooth[best], "o", color="tab:red", label=f"falls fastest: {rates[best]:.2g}")
    axes.set_xscale("log")
    finite = [value for value in losses if math.isfinite(value)]
    if finite:
        # A loss that diverges must not flatten the rest.
        low, high = min(finite), min(max(finite), 1.5 * finite[0])
        margin = 0.05 * max(high - low, 0.1 * abs(high))
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path, "wb") as file:
        save(figure, file, dpi=110)


def _print(folder: Path, rates: list[float], smooth: list[float], best: int | None, num_steps: int) -> None:
    from rich.console import Console

    from dtf.lit.report import shown

    console = Console(highlight=False, soft_wrap=True)
    if best is None:
        console.print(f"the loss never fell in {len(rates)} steps: no learning rate to suggest")
    else:
        console.print(f"the loss falls fastest at optim.lr={rates[best]:.2g}")
        finite = {rate: loss for rate, loss in zip(rates, smooth, strict=True) if math.isfinite(loss)}
        console.print(
            f"it is least at {min(finite, key=lambda rate: finite[rate]):.2g}: stay well below that"
        )
    if len(rates) < num_steps:
        console.print(f"it diverged at {rates[-1]:.2g}, after {len(rates)} of {num_steps} steps")
    console.print(f"picture and numbers: {markup(shown(folder / 'lr_find.png'))}, lr_find.csv")
