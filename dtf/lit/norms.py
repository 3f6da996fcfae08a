"""Batch norms: which of them are the backbone's, and exact statistics for an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dtf.data.dataset import Batch
from dtf.layers.temporal import temporal_layers


def backbone_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network, but for those whose statistics no image weights fill."""
    inside = {id(norm) for layer in temporal_layers(network).values() for norm in layer.fresh_norms()}
    return [norm for norm in _norms(network) if id(norm) not in inside]


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class FreezeNorm(Callback):
    """Keeps the backbone's batch norms in evaluation mode, so that their statistics stay as they were loaded.

    Their weights and biases train on. The norms inside temporal layers go on as ever: no pretrained weights
    hold statistics for them.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Whatever has put the network into training mode since the last one."""
        for norm in backbone_norms(pl_module.network):
            norm.eval()


class _InContext(nn.Module):
    """A network called in a context: that of its precision, which must not reach the reading of clips."""

    def __init__(self, network: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.network = network
        self.context = context

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        with self.context():
            return self.network(video)


class PreciseNorm(Callback):
    """Before each validation, batch norm statistics of the weights as they are, over many training batches.

    In training they are a running average over the last batches, whose weights were other ones. What is
    validated, and saved after that, has the mean and variance over `num_batches` batches instead, those that
    the epoch began with (`fvcore.nn.precise_bn`, "Rethinking Batch in BatchNorm", arXiv 2105.07576), averaged
    over the processes. Dropout and drop path are off meanwhile, and the batches come from a loader of their
    own, so that training goes on as it would have. Frozen norms stay as they are. With averaged weights
    (`dtf.lit.averaging`) the statistics are those of the average, if this callback stands behind that one.

    Args:
        num_batches: at most; an epoch may have fewer.
        freeze_norm: leave the backbone's norms alone.
    """

    def __init__(self, num_batches: int, freeze_norm: bool = False) -> None:
        self.num_batches = num_batches
        self.freeze_norm = freeze_norm

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimate, where this is a validation within training."""
        if trainer.state.fn == "fit":
            self.estimate(trainer, pl_module)

    @torch.no_grad()
    def estimate(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replace the running statistics."""
        from fvcore.nn.precise_bn import update_bn_stats

        network = pl_module.network
        norms: list[Any] = [*_norms(network)]
        if self.freeze_norm:
            frozen = {id(norm) for norm in backbone_norms(network)}
            norms = [norm for norm in norms if id(norm) not in frozen]
        # A loader and a sampler of its own: the place of training in its epoch stays where it is.
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        loader.sampler.set_epoch(trainer.current_epoch)
        precision = trainer.precision_plugin
        videos = (
            trainer.strategy.batch_to_device(precision.convert_input(batch), dataloader_idx=0)["video"]
            for batch in loader
        )
        buffers = [(norm.running_mean, norm.running_var) for norm in norms]
        for norm in norms:
            norm.train()
        step = _InContext(network, precision.val_step_context)
        update_bn_stats(step, videos, min(self.num_batches, len(loader)))
        for norm, (mean, variance) in zip(norms, buffers, strict=True):
            norm.eval()
            square = trainer.strategy.reduce(norm.running_var + norm.running_mean**2, reduce_op="mean")
            # fvcore puts new tensors in the place of the buffers that DDP and others hold on to.
            mean.copy_(trainer.strategy.reduce(norm.running_mean, reduce_op="mean"))
            variance.copy_(square - mean**2)
            norm.running_mean, norm.running_var = mean, variance
