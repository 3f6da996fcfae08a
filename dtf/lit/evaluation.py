"""The parts of an evaluation, in the order of eval.py: build, test, report, close."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dtf.apply.graphs import GRAPHS, fixed_settings, load_any
from dtf.data.datamodule import VideoDataModule
from dtf.errors import RunError
from dtf.files import replacing, write_json
from dtf.lit import build
from dtf.lit.about import describe_run
from dtf.lit.engine import Engine
from dtf.lit.kept_scores import FOLDER, KeepScores, KeptScores, describe_evaluation
from dtf.lit.report import print_results, result_rows, shown, write_all
from dtf.lit.scores import VideoScores
from dtf.lit.survival import stoppable
from dtf.lit.tasks.task import Result
from dtf.runs.from_checkpoint import apply_data
from dtf.runs.process import is_first_process
from dtf.runs.writing import begin

log = logging.getLogger("dtf.eval")


@dataclass
class Evaluating:
    """A run of eval.py.

    Attributes:
        cfg: its settings.
        folder: of the run.
        checkpoint: the file that is tested.
        data: its videos.
        network: what is tested, with a `name`.
        model: the network on its task, for Lightning.
        trainer: Lightning's.
        kept: scores of what an earlier part of the evaluation has tested; None: the task keeps none.
    """

    cfg: DictConfig
    folder: Path
    checkpoint: Path
    data: VideoDataModule
    network: nn.Module
    model: Engine
    trainer: pl.Trainer
    kept: KeptScores | None


def build_evaluation(cfg: DictConfig, folder: Path) -> Evaluating:
    """Everything that is needed; the settings are written into the folder.

    Raises:
        ValueError: settings out of range, a file or data that do not fit.
        RunError: the folder keeps the scores of another evaluation.
    """
    build.check_top_level(cfg, build.EVAL_SETTINGS)
    path, graph = Path(cfg.checkpoint), Path(cfg.checkpoint).suffix in GRAPHS
    precision = str(cfg.trainer.get("precision"))
    if graph and precision != "32-true":
        raise ValueError(f"trainer.precision={precision}: an exported graph has its own, leave that out")
    headline = build.task_class(cfg.task).headline()
    callbacks = build.build_callbacks(cfg.callbacks, headline)
    trainer = build.build_trainer(cfg.trainer, folder, callbacks, [])
    network, names, stored = load_any(path, str(trainer.strategy.root_device), cfg.trust)
    changed = apply_data(cfg.data, stored, HydraConfig.get().overrides.task)
    if cfg.views is not None:
        cfg.data.test_views = cfg.views
    if changed:
        log.info("from the checkpoint: %s", ", ".join(changed))

    data = build.build_data(cfg.data)
    data.normalizes = not graph
    task = build.build_task(cfg.task, data)
    build.check_fits(path, names, fixed_settings(network), data, task.outputs)
    data.load_splits(["test"])
    model = Engine(
        network,
        task,
        # The recipe plays no part here; the module only evaluates.
        {"name": "sgd", "lr": 0.1},
        # Too many broken videos are told at the end, when everything is written.
        max_bad_fraction=1.0,
        clips_per_pass=data.batch_size,
    )
    kept, collector = None, model.collectors["test"]
    if isinstance(collector, VideoScores) and collector.sums_to_one:
        kept = KeptScores(folder / FOLDER, describe_evaluation(path, network.name, data, precision))
        # Another part of what is limited would be another evaluation, which takes no time anyway.
        if isinstance(trainer.limit_test_batches, float) and trainer.limit_test_batches == 1.0:
            getattr(trainer, "callbacks").append(KeepScores(kept))  # noqa: B009 - Lightning does not declare it
    begin()
    if is_first_process():
        if kept is not None:
            kept.begin()
        with replacing(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
        about = describe_run("eval", trainer, network)
        write_json(folder / "about.json", about | {"task": task.description()})
    return Evaluating(cfg, folder, path, data, network, model, trainer, kept)


def test(run: Evaluating) -> Result:
    """What the network finds, the same on every process."""
    with stoppable(run.trainer, run.kept.summary) if run.kept is not None else nullcontext():
        run.trainer.test(run.model, datamodule=run.data, verbose=False)
    # Where all scores were there already, Lightning has had nothing to do.
    return run.model.results.get("test") or run.model.collectors["test"].compute()


def report(run: Evaluating, result: Result) -> None:
    """Write the results and print them, also where too many videos are broken. For the first process."""
    folder, data, task = run.folder, run.data, run.model.task
    views, title = run.cfg.data.test_views, f"{run.network.name} on {data.name}"
    about = {
        "checkpoint": str(run.checkpoint),
        "network": run.network.name,
        "views": views,
        "refused": result.refusal("test", data.max_bad_fraction) or None,
    }
    found = write_all(folder, task, result, data, "test", title, about)
    print_results(
        f"{title}, {data.describe_split('test')}, {views} views",
        result_rows(task, result, found),
        [
            ("checkpoint", shown(run.checkpoint)),
            ("pictures, scores", shown(folder)),
            ("in a browser", shown(folder / "report.html")),
        ],
    )


def close(run: Evaluating, result: Result) -> None:
    """Forget the scores that were kept, for the evaluation is finished. For the first process.

    Raises:
        RunError: too many videos are broken.
    """
    refusal = result.refusal("test", run.data.max_bad_fraction)
    if refusal:
        kept = f"; {run.kept.summary()}" if run.kept is not None else ""
        raise RunError(f"{refusal}. {shown(run.folder / 'report.html')} has what was found{kept}")
    if run.kept is not None:
        run.kept.remove()
