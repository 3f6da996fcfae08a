"""From a composed config to objects: data, network, trainer. Each builder takes its own group of settings."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from rich.table import Table
from torch import nn

from dtf.data.datamodule import VideoDataModule
from dtf.data.lists import VIDEOS, Kind
from dtf.errors import RunError
from dtf.layers.options import defaults_of
from dtf.layers.temporal import FAMILIES
from dtf.lit.averaging import AverageWeights
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.lit.norms import FreezeNorm, PreciseNorm, backbone_norms
from dtf.lit.optim import GROUP_TITLES, OptimConfig, parameter_groups
from dtf.lit.private import cluster_environment, set_timeout, take_processes
from dtf.lit.survival import StopOnSignal, Stopped
from dtf.lit.tasks.task import Task
from dtf.models import VideoNetwork, create_model
from dtf.models.registry import architecture
from dtf.runs.composing import Recipe, plain
from dtf.runs.description import ACTIVATIONS
from dtf.runs.measure import Measure
from dtf.text import markup, nearest
from dtf.values import is_integer, is_number

log = logging.getLogger(__name__)

# What train.py and eval.py read of a config's top level.
TRAIN_SETTINGS = (
    *("model", "data", "task", "optim", "trainer", "logger", "callbacks"),
    *(
        "output",
        "quiet",
        "seed",
        "nonfinite",
        "label_smoothing",
        "mixing",
        "ema",
        "norm",
        "find_lr",
        "compile",
        "grad_checkpointing",
    ),
)
EVAL_SETTINGS = ("checkpoint", "trust", "data", "task", "views", "trainer", "callbacks", "output", "quiet")
COLLECTIVE_TIMEOUT = "collective_timeout_minutes"
"""Of `conf/trainer/`, and ours: how long a process waits for the others."""


def check_top_level(cfg: DictConfig, allowed: Sequence[str]) -> None:
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


def task_class(cfg: DictConfig) -> type[Task]:
    """The class that a file of `conf/task/` names.

    Raises:
        ValueError: it names something else.
    """
    found = get_class(cfg["_target_"])
    if not issubclass(found, Task) or found.name != cfg["name"]:
        raise ValueError(f"task: {cfg['_target_']} is no task with the name {cfg['name']!r}")
    if found.activation not in ACTIVATIONS:
        raise ValueError(
            f"task={found.name}: activation must be one of {', '.join(ACTIVATIONS)}, got {found.activation!r}"
        )
    return found


def build_task(cfg: DictConfig, data: VideoDataModule, **recipe: Any) -> Task:
    """The task of `conf/task/`, which says from now on what the data's targets are.

    Args:
        cfg: of the group.
        data: of the run.
        recipe: arguments of every task, `label_smoothing` and `mixing`.
    """
    own = {key: value for key, value in plain(cfg).items() if key not in ("_target_", "name")}
    task = task_class(cfg)(data, **recipe, **own)
    data.target = task.target
    return task


def check_heads(network: VideoNetwork, task: Task) -> None:
    """Refuses a network of several heads for a task that cannot join them.

    Raises:
        ValueError: the task's scores are no softmax.
    """
    if network.num_heads > 1 and task.activation != "softmax":
        raise ValueError(
            f"{network.name} has {network.num_heads} heads, which are joined by softmax scores; those of "
            f"task={task.name} are none: take a network of one head (model.dual=false)"
        )


def build_network(cfg: DictConfig, num_outputs: int, clip_length: int, goes_on: bool = False) -> VideoNetwork:
    """The network of `conf/model/` for a task's outputs and the clip length of the data.

    Args:
        cfg: of `conf/model/`.
        num_outputs: numbers for each clip, the classes for instance.
        clip_length: frames.
        goes_on: whether the weights of a checkpoint will follow: then no pretrained ones are read.

    Settings that only make up the network's name (`depth` and `size` where it does not take them, others
    where the name fixes them to the same) are left out, and so are those of temporal layers for a network
    that carries none; null means the network's own default.
    """
    settings = plain(cfg)
    name, pretrained = settings.pop("name"), settings.pop("pretrained", False)
    pretrained = False if goes_on else pretrained
    entry = architecture(name)
    of_name = {"depth", "size"} - set(entry.defaults)
    of_name |= {key for key, value in entry.fixed.items() if settings.get(key) == value}
    overrides = {k: v for k, v in settings.items() if v is not None and k not in of_name}
    if entry.family is None:
        # A recipe beside its control: the same network without layers.
        of_layers = {key for family in FAMILIES.values() for key in defaults_of(family.options)}
        for key in sorted(of_layers & overrides.keys() - entry.defaults.keys()):
            log.info("%s carries no temporal layers: model.%s=%s is left out", name, key, overrides.pop(key))
    return create_model(
        name, num_classes=num_outputs, clip_length=clip_length, pretrained=pretrained, **overrides
    )


def check_fits(
    path: Path, names: Sequence[str], fixed: Mapping[str, Any], data: VideoDataModule, outputs: Sequence[str]
) -> None:
    """Refuse to evaluate a network on data that it was not made for.

    Args:
        path: the network's file.
        names: of its outputs, the classes that it knows.
        fixed: data settings that the network is made for and takes no others.
        data: of the evaluation.
        outputs: names that the task has for this data.

    Raises:
        ValueError: other classes or other settings; all faults at once.
    """
    faults = []
    for key, value in fixed.items():
        given = getattr(data.view, key)
        if given != (tuple(value) if isinstance(value, list) else value):
            what = _clips(value) if key == "clip_length" else f"data.{key}={value} only"
            faults.append(f"its network takes {what}, data.{key}={given}: leave that setting out")
    if list(outputs) != list(names):
        ours, theirs = set(outputs), set(names)
        differences = sorted(ours ^ theirs)[:5]
        what = f"for instance {', '.join(differences)}" if differences else "in another order"
        faults.append(
            f"it knows {len(theirs)} classes, data={data.name} has {len(ours)}, and they differ ({what})"
        )
    if faults:
        raise ValueError(f"{path} does not fit: {'; '.join(faults)}")


def _clips(clip_length: int, kind: Kind = VIDEOS) -> str:
    """What a network sees, in words."""
    if clip_length > 1:
        return f"clips of {clip_length} frames"
    return "single frames" if kind is VIDEOS else f"{kind.word}s"


def recipe_hint(
    network: str, data: str, clip_length: int, overrides: Sequence[str], known: Sequence[Recipe]
) -> str | None:
    """What to say where the default recipe, which is made for the motion data, meets something larger.

    Args:
        network: its registered name.
        data: the option of `data`.
        clip_length: frames.
        overrides: of the run, as they were given.
        known: the options of `experiment`.

    Returns:
        None where the recipe was chosen, or fits.
    """
    keys = [re.split(r"[=@]", text.lstrip("+~"))[0] for text in overrides]
    own = ("experiment", "debug", "optim", "trainer.max_epochs", "trainer.max_steps", "model.pretrained")
    entry = architecture(network)
    fits = entry.pocket and data not in {recipe.data for recipe in known}
    if fits or any(key == o or key.startswith(f"{o}.") for key in keys for o in own):
        return None
    # A control takes the recipe of what it is compared with, if that gives it nothing that it does not know.
    control = f" model={network}" if entry.family is None else ""
    takes = {*entry.defaults, "pretrained", "depth", "size"}

    def is_near(recipe: Recipe) -> bool:
        other = architecture(recipe.network)
        if other.backbone.options is not entry.backbone.options:
            return False
        return recipe.settings <= takes if control else other.family is entry.family and not entry.pocket

    near = [recipe for recipe in known if is_near(recipe)]
    hint = "the recipe is the default one, for small networks on the motion data"
    if not near:
        return f"{hint}; docs/recipes.md has others"
    settings = {**entry.fixed, **entry.defaults}

    def fit(recipe: Recipe) -> tuple[Any, ...]:
        other = architecture(recipe.network)
        theirs = {**other.fixed, **other.defaults}
        return (
            recipe.data == data,
            (recipe.clip_length == 1) is (clip_length == 1),
            sum(theirs.get(key) == value for key, value in settings.items()),
            # Data of one's own: the data set that most recipes are for.
            sum(recipe.data == one.data for one in known),
            -abs(recipe.clip_length - clip_length),
        )

    best = max(near, key=fit)
    of_data = f" data={data}" if best.data != data else ""
    return f"{hint}; nearest published one: experiment={best.name}{control}{of_data}"


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of `conf/logger/`, one for each entry that is not null."""
    loggers = []
    for name, node in ({} if cfg is None else cfg).items():
        if node is None:
            continue
        try:
            loggers.append(instantiate(node))
        except InstantiationException as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError):
                extra = {"wandb": "wandb", "tensorboard": "tensorboard"}.get(str(name), str(name))
                raise RunError(f"logger={name!s} needs a package: pip install -e '.[{extra}]'") from None
            raise
    return loggers


@contextmanager
def running(trainer: pl.Trainer) -> Iterator[None]:
    """What has to be ended with a run, however it ends: its other processes and its loggers."""
    try:
        yield
    except BaseException as error:
        for process in take_processes(trainer):
            # They have stopped at the same step, or else they wait for this one in a collective operation,
            # where no signal but SIGKILL reaches them. In a test they have nothing to save.
            saving = isinstance(error, Stopped) and trainer.state.fn == "fit"
            with suppress(subprocess.TimeoutExpired):
                process.wait(30 if saving else 0)
            process.kill()
            process.wait()
        reason = _lost_process(error)
        if reason is not None:
            raise RunError(reason) from error
        raise
    finally:
        # A sweep's next run must not write into this one's curves.
        if any(isinstance(logger, pl.loggers.WandbLogger) for logger in trainer.loggers):
            import wandb

            wandb.finish()


# How gloo, NCCL and the store by which processes find each other say it; they have no types for it.
_NO_ANSWER = re.compile(
    r"timeout caused pair closure|Timed out waiting \d+ ?ms|collective operation timeout"
    r"|timed out in blocking wait|wait timeout after \d+ms|client socket has timed out"
)
_ENDED = re.compile(
    r"gloo.*(closed|reset) by peer|gloo.*Broken pipe|remote process exited|remote server shutdown", re.S
)


def _lost_process(error: BaseException) -> str | None:
    """One line for what a process meets when another one of its run is lost; None for other errors."""
    if not isinstance(error, RuntimeError):
        return None
    last = "the last whole checkpoint is kept, resume=DIR goes on from it"
    if _NO_ANSWER.search(str(error)):
        return (
            "another process of this run has not answered within the time that "
            f"trainer.{COLLECTIVE_TIMEOUT} allows: see whether it hangs or is stopped, or allow more; {last}"
        )
    if _ENDED.search(str(error)):
        return f"another process of this run has ended, its own message says why; {last}"
    return None


def build_callbacks(cfg: DictConfig, headline: Measure) -> list[Callback]:
    """The callbacks of `conf/callbacks/` (and of `conf/debug/`), one for each entry that is not null.

    Args:
        cfg: of the groups. `monitor: null` stands for the headline of a validation.
        headline: of the task.
    """
    known = {"monitor": f"val/{headline.name}", "mode": headline.mode}
    nodes = [node for node in (cfg or {}).values() if node is not None]
    return [instantiate(node, **(known if node.get("monitor", "") is None else {})) for node in nodes]


def build_averages(config: Mapping[str, Any], network: nn.Module) -> list[Callback]:
    """The callbacks of the settings `ema` and `norm`: statistics are taken of the averaged weights, so last.

    Raises:
        ValueError: settings out of range.
    """
    ema, norm = config["ema"], config["norm"]
    known = {"freeze": False, "precise_batches": 0}
    for key in norm:
        if key not in known:
            raise ValueError(f"there is no setting norm.{key}{nearest(str(key), known)}")
    freeze, num_batches = ((known | dict(norm))[key] for key in known)
    if not isinstance(freeze, bool):
        raise ValueError(f"norm.freeze must be true or false, got {freeze!r}")
    if not is_integer(num_batches) or num_batches < 0:
        raise ValueError(f"norm.precise_batches must be a number of batches or 0, got {num_batches!r}")
    if freeze and not backbone_norms(network):
        log.warning("norm.freeze has no effect: the backbone has no batch norm")
    elif freeze and not config["model"].get("pretrained"):
        log.warning("norm.freeze without model.pretrained: the backbone's batch norms do nothing at all")
    if num_batches and config["trainer"]["limit_val_batches"] == 0:
        log.warning("norm.precise_batches has no effect without validation: trainer.limit_val_batches=0")
    callbacks: list[Callback] = [FreezeNorm()] if freeze else []
    callbacks += [] if ema is None else [AverageWeights(ema)]
    return callbacks + ([PreciseNorm(num_batches, freeze)] if num_batches else [])


def build_trainer(
    cfg: DictConfig, folder: Path, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's trainer with the settings of `conf/trainer/`.

    One piece, though long: settings are checked, changed and handed over in an order that matters.

    Raises:
        ValueError: a setting that Lightning does not know, or that this machine cannot do.
    """
    settings = plain(cfg)
    known = [*inspect.signature(pl.Trainer.__init__).parameters, COLLECTIVE_TIMEOUT]
    for key in settings:
        if key not in known:
            raise ValueError(f"there is no setting trainer.{key}{nearest(key, known)}")
    minutes = settings.pop(COLLECTIVE_TIMEOUT, 30)
    if not is_number(minutes) or not 0 < minutes < 10**6:
        raise ValueError(f"trainer.{COLLECTIVE_TIMEOUT} must be minutes above 0, got {minutes!r}")
    profiler = settings.pop("profiler", None)
    if isinstance(profiler, str):
        settings["profiler"] = _build_profiler(profiler, folder)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun has started the processes: how many there are is its decision.
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        settings |= {"devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
    if settings.get("strategy") == "ddp":
        # Every parameter gets a gradient in every step, so none has to be searched for; gradients are kept
        # once, in the buffers that are summed over processes.
        settings["strategy"] = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if os.environ.get("SLURM_NTASKS") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        # A job of one task starts the other processes of its run itself, which Lightning leaves to Slurm.
        plugins.append(LightningEnvironment())
    # A GPU's convolutions multiply float32 in TF32 unless told otherwise; let matrix products do the same.
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    _quiet_lightning()
    # Progress bars and summaries come from conf/callbacks; samplers know the processes themselves.
    settings |= {
        "default_root_dir": folder,
        # Last, to stop after the others have seen the step.
        "callbacks": [*callbacks, StopOnSignal(folder)],
        "logger": loggers or False,
        "plugins": plugins,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": True,
        "enable_progress_bar": any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        "enable_model_summary": False,
    }
    try:
        trainer = pl.Trainer(**settings)
    except (TypeError, ValueError) as error:
        # Lightning checks its arguments here and nothing else happens: what is wrong is a setting.
        raise ValueError(f"trainer: {error}") from error
    if isinstance(trainer.strategy, DDPStrategy):
        # Here, because Lightning may have chosen the strategy; its process group comes later.
        set_timeout(trainer.strategy, timedelta(minutes=minutes))
    environment = cluster_environment(trainer)
    if isinstance(environment, SLURMEnvironment):
        # `StopOnSignal` puts a job back into the queue, between two steps.
        environment.auto_requeue = False
    if settings.get("sync_batchnorm"):
        if trainer.world_size == 1:
            log.warning("trainer.sync_batchnorm=true has no effect: there is one process")
        elif trainer.strategy.root_device.type == "cpu":
            raise ValueError(
                "trainer.sync_batchnorm=true needs GPUs: PyTorch's SyncBatchNorm cannot run on CPUs; "
                "leave it out here, statistics are then those of each process"
            )
    return trainer


def _quiet_lightning() -> None:
    """Leave out what Lightning says of itself."""
    # Lightning's announcements (devices found, tips) are noise; its warnings stay, but for one about itself.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Going on in the same folder is what is wanted.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    # Before the first validation nothing is there to choose the best one by; after it, that is an error.
    warnings.filterwarnings(
        "ignore", message=r"`ModelCheckpoint\(monitor=.* could not find the monitored key"
    )
    # Short epochs have their loss as a whole.
    warnings.filterwarnings(
        "ignore", message=r"The number of training batches .* is smaller than the logging"
    )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)


def _build_profiler(name: str, folder: Path) -> Any:
    from pytorch_lightning.profilers import PyTorchProfiler, SimpleProfiler

    kinds: dict[str, Any] = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}
    if name not in kinds:
        raise ValueError(f"trainer.profiler must be simple, pytorch or null, got {name!r}")
    return kinds[name](dirpath=folder / "profile", filename=name)


def print_start(
    network: VideoNetwork, data: VideoDataModule, optim: Mapping[str, Any], trainer: pl.Trainer, folder: Path
) -> None:
    """Say what is about to be trained, with the table of parameter groups; unless the log is quiet."""
    if not log.isEnabledFor(logging.INFO):
        return
    console = Console(highlight=False)
    table = Table(title=f"{markup(network.name)} on {markup(data.name)}", title_justify="left")
    table.add_column("parameters", no_wrap=True)
    for column in ("tensors", "numbers", "lr", "weight decay"):
        table.add_column(column, justify="right")
    for group in parameter_groups(network, OptimConfig.from_mapping(optim)):
        table.add_row(
            GROUP_TITLES.get(group["name"], markup(group["name"])),
            str(len(group["params"])),
            f"{sum(p.numel() for p in group['params']):,}",
            f"{group['lr']:.4g}",
            f"{group['weight_decay']:g}",
        )
    console.print(table)
    device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    console.print(
        f"{data.num_classes} classes, {_clips(data.clip_length, data.kind)} of {data.view.crop_px} px, "
        f"batch {data.batch_size} on each of {device}, precision {trainer.precision}",
        soft_wrap=True,
    )
    console.print(f"output: {markup(os.path.relpath(folder))}", soft_wrap=True)
