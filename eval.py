"""Evaluate a checkpoint on N clips x M crops of each video: `python eval.py --help`, conf/eval.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtf.lit.command import command, is_first_process, run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _prepare(arguments: list[str]) -> list[str]:
    from dtf.lit.stored import choose_data

    return choose_data(arguments)


@command("eval", prepare=_prepare)
def main(cfg: DictConfig) -> dict[str, float]:
    """Test a checkpoint and write results.json, scores.csv, confusion.png and report.html.

    Returns:
        {"test/top1": ..., "test/top5": ..., "test/loss": ...}
    """
    import logging

    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from dtf.lit import build, report
    from dtf.lit.about import describe_run
    from dtf.lit.checkpoint import load_checkpoint
    from dtf.lit.classifier import VideoClassifier
    from dtf.lit.files import replacing
    from dtf.lit.stored import apply_stored
    from dtf.report import write_report

    folder, log = run_folder(), logging.getLogger("dtf.eval")
    build.check_top_level(cfg, build.EVAL_SETTINGS)
    checkpoint = load_checkpoint(cfg.checkpoint)
    changed = apply_stored(cfg.data, checkpoint.data, HydraConfig.get().overrides.task)
    if cfg.views is not None:
        cfg.data.test_views = cfg.views
    if changed and is_first_process():
        log.info("from the checkpoint: %s", ", ".join(changed))

    network = checkpoint.build_network()
    data = build.build_data(cfg.data)
    build.check_fits(checkpoint, data)
    data.load_splits(["test"])
    # The recipe plays no part here; the module only evaluates.
    model = VideoClassifier(
        network,
        data.num_classes,
        checkpoint.config["optim"],
        max_bad_fraction=data.max_bad_fraction,
        clips_per_pass=data.batch_size,
    )
    trainer = build.build_trainer(cfg.trainer, folder, build.build_callbacks(cfg.callbacks), [])
    if is_first_process():
        with replacing(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
        report.write_json(folder / "about.json", describe_run("eval.py", trainer, network))
    with build.running(trainer):
        trainer.test(model, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        evaluation = model.evaluations["test"]
        about = {"checkpoint": str(checkpoint.path), "network": network.name, "views": cfg.data.test_views}
        found = report.write_all(folder, evaluation, data, "test", f"{network.name} on {data.name}", about)
        report.print_results(
            f"{network.name} on {data.name}, {data.describe_split('test')}, {cfg.data.test_views} views",
            found,
            [
                ("checkpoint", report.shown(checkpoint.path)),
                ("pictures, scores", report.shown(folder)),
                ("in a browser", report.shown(folder / "report.html")),
            ],
        )
        # Last: a result is not lost for want of a page.
        write_report(folder)
    return metrics


if __name__ == "__main__":
    main()
