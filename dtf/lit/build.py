"""From a composed config to objects: data, network, trainer. Each builder takes its own group of settings."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from rich.console import Console
from rich.table import Table
from torch import nn

from dtf.data.datamodule import VideoDataModule
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.lit.command import RunError, nearest
from dtf.lit.optim import OptimConfig, parameter_groups
from dtf.models import create_model


TRAIN_SETTINGS = frozenset(
    "model data optim trainer logger callbacks output seed label_smoothing max_bad_fraction compile".split()
)
EVAL_SETTINGS = frozenset("checkpoint data views trainer callbacks output max_bad_fraction".split())


def plain(cfg: Any) -> Any:
    """A config node as dicts, lists, numbers and strings, all references resolved."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def check_top_level(cfg: DictConfig, allowed: frozenset[str]) -> None:
    """Refuse settings that were added with `+` and that nothing reads.

    Raises:
        ValueError: names them all, with the nearest names.
    """
    unknown = [str(key) for key in cfg if key not in allowed]
    if unknown:
        raise ValueError("; ".join(f"there is no setting {k}{nearest(k, allowed)}" for k in unknown))


def build_data(cfg: DictConfig) -> VideoDataModule:
    """The data module of `conf/data/`, its files made where it makes them itself."""
    data = instantiate(cfg)
    data.prepare_data()
    return data


def build_network(cfg: DictConfig, data: VideoDataModule) -> nn.Module:
    """The network of `conf/model/` for this data set's classes and clip length.

    `depth` and `size` only make up the name; null means the network's own default.
    """
    settings = plain(cfg)
    name, pretrained = settings.pop("name"), settings.pop("pretrained", False)
    overrides = {k: v for k, v in settings.items() if v is not None and k not in ("depth", "size")}
    return create_model(
        name, num_classes=data.num_classes, clip_length=data.clip_length, pretrained=pretrained, **overrides
    )


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of `conf/logger/`, one for each entry that is not null."""
    loggers = []
    for name, node in (cfg or {}).items():
        if node is None:
            continue
        try:
            loggers.append(instantiate(node))
        except InstantiationException as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError):
                extra = {"wandb": "wandb", "tensorboard": "tensorboard"}.get(str(name), str(name))
                raise RunError(f"logger={name} needs a package: pip install 'dtf[{extra}]'") from None
            raise
    return loggers


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks of `conf/callbacks/` (and of `conf/debug/`), one for each entry that is not null."""
    return [instantiate(node) for node in (cfg or {}).values() if node is not None]


def build_trainer(
    cfg: DictConfig, folder: Path, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's trainer with the settings of `conf/trainer/`.

    Raises:
        ValueError: a setting that Lightning does not know.
    """
    settings = plain(cfg)
    known = list(inspect.signature(pl.Trainer.__init__).parameters)
    for key in settings:
        if key not in known:
            raise ValueError(f"there is no setting trainer.{key}{nearest(key, known)}")
    profiler = settings.pop("profiler", None)
    if isinstance(profiler, str):
        settings["profiler"] = _build_profiler(profiler, folder)
    # Progress bars and summaries come from conf/callbacks; samplers know the processes themselves.
    return pl.Trainer(
        **settings,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
    )


def _build_profiler(name: str, folder: Path) -> Any:
    from pytorch_lightning.profilers import PyTorchProfiler, SimpleProfiler

    kinds: dict[str, Any] = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}
    if name not in kinds:
        raise ValueError(f"trainer.profiler must be simple, pytorch or null, got {name!r}")
    return kinds[name](dirpath=folder / "profile", filename=name)


def print_start(
    network: nn.Module, data: VideoDataModule, optim: Mapping[str, Any], trainer: pl.Trainer, folder: Path
) -> None:
    """Say what is about to be trained, with the table of parameter groups."""
    console = Console(highlight=False)
    table = Table(title=f"{network.name} on {data.name}", title_justify="left")
    for column in ("parameter group", "tensors", "parameters", "lr", "weight decay", "for example"):
        table.add_column(column, justify="left" if column in ("parameter group", "for example") else "right")
    for group in parameter_groups(network, OptimConfig.from_mapping(optim)):
        table.add_row(
            group["name"],
            str(len(group["params"])),
            f"{sum(p.numel() for p in group['params']):,}",
            f"{group['lr']:g}",
            f"{group['weight_decay']:g}",
            ", ".join(group["param_names"][:2]),
        )
    console.print(table)
    device = f"{trainer.num_devices} x {trainer.strategy.root_device.type}"
    console.print(
        f"{data.num_classes} classes, clips of {data.clip_length} frames of {data.crop_px} px, "
        f"batch {data.batch_size} on each of {device}, precision {trainer.precision}"
    )
    console.print(f"output: {os.path.relpath(folder)}", soft_wrap=True)
