"""The parts of a training, in the order of train.py: build, fit, test, report."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from pytorch_lightning.loggers import Logger

from dtf.data.datamodule import VideoDataModule
from dtf.files import replacing, write_json
from dtf.lit import build
from dtf.lit.about import describe_run
from dtf.lit.callbacks import BrokenVideos
from dtf.lit.engine import Engine
from dtf.lit.loggers import log_start
from dtf.lit.lr_finder import LearningRateSearch
from dtf.lit.report import next_commands, print_results, result_rows, shown, write_all, write_untested
from dtf.lit.state import check_state
from dtf.lit.survival import LastCheckpoint
from dtf.models import VideoNetwork, save_weights
from dtf.runs import resume
from dtf.runs.checkpoint import describe, load_checkpoint
from dtf.runs.composing import plain, recipes
from dtf.runs.conf import CONF
from dtf.runs.measure import measures
from dtf.runs.process import is_first_process
from dtf.runs.writing import begin

log = logging.getLogger("dtf.train")


@dataclass
class Training:
    """A run of train.py.

    Attributes:
        cfg: its settings.
        config: the same, as plain data.
        folder: of the run.
        data: its videos.
        network: what is trained.
        model: the network on its task, for Lightning.
        trainer: Lightning's.
        loggers: of the trainer.
        timer: of the training alone.
        seconds: that training took.
        metrics: what was logged last, and the best value of the one that chose the checkpoint.
        tested: the checkpoint that was tested.
    """

    cfg: DictConfig
    config: dict[str, Any]
    folder: Path
    data: VideoDataModule
    network: VideoNetwork
    model: Engine
    trainer: pl.Trainer
    loggers: list[Logger]
    timer: Timer
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tested: Path = Path()

    @property
    def last(self) -> Path:
        """The checkpoint from which the run goes on."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def test_stage(self) -> str | None:
        """The split by which the run is judged: "test", else "val", else None."""
        return next((stage for stage in ("test", "val") if self.data.splits[stage]), None)

    @property
    def description(self) -> dict[str, Any]:
        """What checkpoints say of it."""
        assert self.model.description is not None
        return self.model.description


def check_settings(cfg: DictConfig) -> None:
    """Refuse settings that nothing reads, and leave out a validation without videos.

    Raises:
        ValueError: names them.
    """
    build.check_top_level(cfg, build.TRAIN_SETTINGS)
    if OmegaConf.select(cfg, "data.splits.val", default="val") is None:
        cfg.trainer.limit_val_batches = 0


def finished(cfg: DictConfig, folder: Path) -> dict[str, float] | None:
    """The metrics of a run that is complete with these very settings, else None."""
    done = resume.finished(folder, plain(cfg))
    if done is None or cfg.find_lr:
        return None
    headline = measures(done.get("task"))[0]
    value = done.get(headline.name)
    result = "" if value is None else f" (test {headline.title} {headline.format(value)})"
    log.info("%s is finished%s: nothing to do", folder, result)
    return done["metrics"]


def build_model(cfg: DictConfig, folder: Path) -> tuple[VideoDataModule, Engine]:
    """The data, and the network on its task, which goes on where the folder has a checkpoint.

    Raises:
        ValueError: settings out of range, data that cannot be read.
        RunError: the checkpoint is of a run with other settings.
    """
    config = plain(cfg)
    data = build.build_data(cfg.data)
    data.load_splits(["train", *(stage for stage in ("val", "test") if data.splits[stage])])
    task = build.build_task(cfg.task, data, label_smoothing=cfg.label_smoothing, mixing=config["mixing"])
    torch.manual_seed(cfg.seed)
    last = folder / "checkpoints" / "last.ckpt"
    goes_on = last.is_file() and not cfg.find_lr
    network = build.build_network(cfg.model, len(task.outputs), data.clip_length, goes_on)
    build.check_heads(network, task)
    settings = config["data"] | {"root": data.root}
    description = describe(network, list(task.outputs), settings, config, task.activation)
    if goes_on:
        checkpoint = load_checkpoint(last, weights=False)
        for change in resume.check_same_run(checkpoint, description):
            log.warning("goes on with a changed setting: %s", change)
        log.info(
            "going on after step %d (epochs finished: %d) of %s", checkpoint.step, checkpoint.epoch, last
        )
    if cfg.grad_checkpointing:
        network.set_grad_checkpointing()
    if cfg.compile:
        network.compile()
    return data, (LearningRateSearch if cfg.find_lr else Engine)(
        network,
        task,
        config["optim"],
        nonfinite=cfg.nonfinite,
        max_bad_fraction=data.max_bad_fraction,
        clips_per_pass=data.batch_size,
        seed=cfg.seed,
        description=description,
        folder=folder,
    )


def build_training(cfg: DictConfig, folder: Path, data: VideoDataModule, model: Engine) -> Training:
    """The whole run; its settings are written into the folder, and what it does is printed.

    Raises:
        ValueError: settings out of range, or a checkpoint that the run cannot go on from.
    """
    config, network, timer = plain(cfg), model.network, Timer()
    callbacks = [
        *build.build_averages(config, network),
        *build.build_callbacks(cfg.callbacks, model.task.headline()),
        BrokenVideos(data.max_bad_fraction, folder),
        timer,
    ]
    loggers = build.build_loggers(cfg.logger, folder)
    trainer = build.build_trainer(cfg.trainer, folder, callbacks, loggers)
    assert isinstance(network, VideoNetwork)
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    if last.is_file():
        for path in filter(Path.is_file, (last, best)):
            check_state(path, trainer, model)
    begin()
    if is_first_process():
        with replacing(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
        build.print_start(network, data, config["optim"], trainer, folder)
        hydra = HydraConfig.get()
        names = config["model"]["name"], hydra.runtime.choices["data"]
        if hint := build.recipe_hint(*names, data.clip_length, hydra.overrides.task, recipes(CONF)):
            log.warning(hint)
    return Training(cfg, config, folder, data, network, model, trainer, loggers, timer)


def fit(run: Training) -> None:
    """Train; what was logged is in `run.metrics`."""
    if is_first_process():
        about = describe_run("train", run.trainer, run.network, run.config["optim"])
        write_json(run.folder / "about.json", about | {"task": run.model.task.description()})
        log_start(run.loggers, run.model.task, run.config, about)
    goes_on = run.last if run.last.is_file() else None
    run.trainer.fit(run.model, datamodule=run.data, ckpt_path=goes_on, weights_only=True)
    # Now: testing a checkpoint gives every callback, the timer too, what it says once more.
    run.seconds = run.timer.time_elapsed("train")
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    for callback in run.trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
            metrics[f"{callback.monitor}_best"] = float(callback.best_model_score)
        elif isinstance(callback, LastCheckpoint):
            metrics = callback.metrics | metrics
    run.metrics = metrics


def test(run: Training) -> None:
    """Test the best checkpoint, or the last one where no epoch was validated."""
    best = run.folder / "checkpoints" / "best.ckpt"
    run.tested = best if best.is_file() else run.last
    if run.test_stage is None:
        run.network.load_state_dict(load_checkpoint(run.tested).state_dict)
    else:
        evaluate = run.trainer.test if run.test_stage == "test" else run.trainer.validate
        evaluate(run.model, datamodule=run.data, ckpt_path=run.tested, weights_only=True, verbose=False)
    run.metrics |= {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def report(run: Training) -> None:
    """Write the weights to share and the results, and print them. For the first process."""
    folder, data, network, task = run.folder, run.data, run.network, run.model.task
    weights = folder / "model.safetensors"
    # To be shared: where the videos lie on this machine is nobody else's business.
    shared = {k: v for k, v in run.description["data"].items() if k != "root"}
    names = run.description["class_names"]
    told = {"class_names": names, "data": shared, "task": task.name, "activation": task.activation}
    save_weights(weights, network, told)
    title = f"{network.name} on {data.name}"
    metrics = {name: value if math.isfinite(value) else None for name, value in run.metrics.items()}
    figures = {"seconds": run.seconds, "metrics": metrics, "config": run.config}
    rows: list[list[tuple[str, str]]] = []
    if run.test_stage is None:
        write_untested(folder, task, figures)
        split = "neither validated nor tested"
    else:
        result = run.model.results[run.test_stage]
        found = write_all(folder, task, result, data, run.test_stage, title, figures)
        rows, split = result_rows(task, result, found), data.describe_split(run.test_stage)
    print_results(
        f"{title}, {split}, {run.tested.stem} checkpoint",
        rows,
        [
            ("checkpoint", shown(run.tested)),
            ("weights to share", shown(weights)),
            ("pictures, scores", shown(folder)),
            ("in a browser", shown(folder / "report.html")),
            *next_commands(data, run.tested),
        ],
    )
