"""Train a network and test it: `python train.py --help`, settings in conf/train.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf.runs import resume
from dtf.runs.command import CONF, begin, command, is_first_process, plain, program, run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _summarize(folder: Path) -> int:
    from dtf.sweep import summarize

    return summarize(folder)


@command("train", prepare=resume.expand, finished=resume.finished, summarize=_summarize)
def main(cfg: DictConfig) -> dict[str, float]:
    """Train, keep the best and the last checkpoint, test the best one.

    Returns:
        The last metrics of training, the best one of those by which the checkpoint was chosen
        ("val/top1_best"), those of the test ("test/top1", ...). results.json keeps them. Without validation
        (data.splits.val=null) there is no best checkpoint, and without a test split as well no evaluation.
    """
    import logging
    import math

    import torch
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from pytorch_lightning.callbacks import ModelCheckpoint, Timer

    from dtf.files import replacing, write_json
    from dtf.lit import build, report
    from dtf.lit.about import describe_run
    from dtf.lit.callbacks import BrokenVideos
    from dtf.lit.classifier import VideoClassifier
    from dtf.lit.loggers import log_start
    from dtf.lit.lr_finder import LearningRateSearch, find_lr
    from dtf.lit.survival import LastCheckpoint
    from dtf.models import save_weights
    from dtf.report import write_report
    from dtf.runs.checkpoint import describe, load_checkpoint

    folder, log = run_folder(), logging.getLogger("dtf.train")
    if OmegaConf.select(cfg, "data.splits.val", default="val") is None:
        cfg.trainer.limit_val_batches = 0
    config = plain(cfg)
    build.check_top_level(cfg, build.TRAIN_SETTINGS)
    done = resume.finished(folder, config)
    if done is not None and not cfg.find_lr:
        result = f" (test top-1 {done['top1']:.2%})" if "top1" in done else ""
        log.info("%s is finished%s: nothing to do", folder, result)
        return done["metrics"]

    data = build.build_data(cfg.data)
    data.load_splits(["train", *(stage for stage in ("val", "test") if data.splits[stage])])
    test_stage = next((stage for stage in ("test", "val") if data.splits[stage]), None)
    torch.manual_seed(cfg.seed)
    last = folder / "checkpoints" / "last.ckpt"
    goes_on = last.is_file() and not cfg.find_lr
    network = build.build_network(cfg.model, data, goes_on)
    description = describe(network, data.class_names, config["data"] | {"root": data.root}, config)

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
    model = (LearningRateSearch if cfg.find_lr else VideoClassifier)(
        network,
        data.num_classes,
        config["optim"],
        label_smoothing=cfg.label_smoothing,
        nonfinite=cfg.nonfinite,
        mixing=config["mixing"],
        freeze_norm=cfg.norm.freeze,
        max_bad_fraction=data.max_bad_fraction,
        clips_per_pass=data.batch_size,
        seed=cfg.seed,
        description=description,
        folder=folder,
    )
    if isinstance(model, LearningRateSearch):
        return find_lr(model, data, cfg, folder)
    timer = Timer()
    callbacks = [
        *build.build_averages(config, network),
        *build.build_callbacks(cfg.callbacks),
        BrokenVideos(data.max_bad_fraction, folder),
        timer,
    ]
    loggers = build.build_loggers(cfg.logger, folder)
    trainer = build.build_trainer(cfg.trainer, folder, callbacks, loggers)
    begin()
    if is_first_process():
        with replacing(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
        build.print_start(network, data, config["optim"], trainer, folder)
        recipes = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
        overrides = HydraConfig.get().overrides.task
        names = config["model"]["name"], config["data"]["name"]
        if hint := build.recipe_hint(*names, data.clip_length, overrides, recipes):
            log.warning(hint)

    with build.running(trainer):
        if is_first_process():
            about = describe_run("train", trainer, network, config["optim"])
            write_json(folder / "about.json", about)
            log_start(loggers, config, about)
        trainer.fit(model, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
        # Now: testing a checkpoint gives every callback, the timer too, what it says once more.
        seconds = timer.time_elapsed("train")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
                metrics[f"{callback.monitor}_best"] = float(callback.best_model_score)
            elif isinstance(callback, LastCheckpoint):
                metrics = callback.metrics | metrics
        # There is no best one where no epoch was validated.
        best = folder / "checkpoints" / "best.ckpt"
        tested = best if best.is_file() else last
        if test_stage is None:
            network.load_state_dict(load_checkpoint(tested).state_dict)
        else:
            evaluate = trainer.test if test_stage == "test" else trainer.validate
            evaluate(model, datamodule=data, ckpt_path=tested, weights_only=True, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        weights = folder / "model.safetensors"
        # To be shared: where the videos lie on this machine is nobody else's business.
        shared = {k: v for k, v in description["data"].items() if k != "root"}
        save_weights(weights, network, {"class_names": description["class_names"], "data": shared})
        title = f"{network.name} on {data.name}"
        figures = {
            "seconds": seconds,
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "config": config,
        }
        if test_stage is None:
            found, split = report.write_untested(folder, figures), "neither validated nor tested"
        else:
            evaluation = model.evaluations[test_stage]
            found = report.write_all(folder, evaluation, data, test_stage, title, figures)
            split = data.describe_split(test_stage)
        report.print_results(
            f"{title}, {split}, {tested.stem} checkpoint",
            found,
            [
                ("checkpoint", report.shown(tested)),
                ("weights to share", report.shown(weights)),
                ("pictures, scores", report.shown(folder)),
                ("in a browser", report.shown(folder / "report.html")),
                ("more views", f"{program('eval')} checkpoint={report.shown(tested)} views=3x3"),
                ("your video", f"python -m dtf.predict VIDEO checkpoint={report.shown(tested)}"),
            ],
        )
        # Last: a result is not lost for want of a page.
        write_report(folder)
    return metrics


if __name__ == "__main__":
    main()
