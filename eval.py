"""Evaluate a checkpoint on N clips x M crops of each video: `python eval.py --help`, conf/eval.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf.errors import RunError
from dtf.runs.command import begin, command, is_first_process, run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _prepare(arguments: list[str]) -> list[str]:
    from dtf.apply.graphs import read_data
    from dtf.runs.stored import choose_data

    for argument in arguments:
        if argument.startswith("output="):
            _refuse_training(Path(argument.removeprefix("output=").strip("'\"")))
    return choose_data(arguments, read_data)


def _refuse_training(folder: Path) -> None:
    """ValueError where a folder is that of a training, whose files an evaluation would replace."""
    config = folder / "config.yaml"
    trained = config.is_file() and "\noptim:" in config.read_text("utf-8", "replace")
    if trained or (folder / "checkpoints").exists():
        raise ValueError(f"output={folder} is the folder of a training: give the evaluation one of its own")


@command("eval", prepare=_prepare)
def main(cfg: DictConfig) -> dict[str, float]:
    """Test a checkpoint and write results.json, scores.csv, confusion.png and report.html.

    What is cut off goes on where it stopped when it is started again with the same `output`. Where too many
    videos are broken, the files are written and the command fails.

    Returns:
        {"test/top1": ..., "test/top5": ..., "test/loss": ...}
    """
    import logging

    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from dtf.apply.graphs import GRAPHS, fixed_settings, load_any
    from dtf.files import replacing, write_json
    from dtf.lit import build, report
    from dtf.lit.about import describe_run
    from dtf.lit.classifier import VideoClassifier
    from dtf.lit.kept_scores import FOLDER, KeepScores, KeptScores, describe_evaluation
    from dtf.lit.report import shown
    from dtf.lit.survival import stoppable
    from dtf.report import write_report
    from dtf.runs.stored import apply_stored

    folder, log = run_folder(), logging.getLogger("dtf.eval")
    _refuse_training(folder)
    build.check_top_level(cfg, build.EVAL_SETTINGS)
    path, graph = Path(cfg.checkpoint), Path(cfg.checkpoint).suffix in GRAPHS
    precision = str(cfg.trainer.get("precision"))
    if graph and precision != "32-true":
        raise ValueError(f"trainer.precision={precision}: an exported graph has its own, leave that out")
    trainer = build.build_trainer(cfg.trainer, folder, build.build_callbacks(cfg.callbacks), [])
    network, class_names, stored = load_any(path, str(trainer.strategy.root_device), cfg.trust)
    changed = apply_stored(cfg.data, stored, HydraConfig.get().overrides.task)
    if cfg.views is not None:
        cfg.data.test_views = cfg.views
    if changed:
        log.info("from the checkpoint: %s", ", ".join(changed))

    data = build.build_data(cfg.data)
    data.normalizes = not graph
    build.check_fits(path, class_names, fixed_settings(network), data)
    data.load_splits(["test"])
    model = VideoClassifier(
        network,
        data.num_classes,
        # The recipe plays no part here; the module only evaluates.
        {"name": "sgd", "lr": 0.1},
        # Too many broken videos are told at the end, when everything is written.
        max_bad_fraction=1.0,
        clips_per_pass=data.batch_size,
    )
    kept = KeptScores(folder / FOLDER, describe_evaluation(path, network.name, data, precision))
    # Another part of what is limited would be another evaluation, which takes no time anyway.
    if isinstance(trainer.limit_test_batches, float) and trainer.limit_test_batches == 1.0:
        getattr(trainer, "callbacks").append(KeepScores(kept))  # noqa: B009 - Lightning does not declare it
    begin()
    if is_first_process():
        kept.begin()
        with replacing(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
        write_json(folder / "about.json", describe_run("eval", trainer, network))
    with build.running(trainer), stoppable(trainer, kept.summary):
        trainer.test(model, datamodule=data, verbose=False)
    # Where all scores were there already, Lightning has had nothing to do.
    found = model.evaluations.get("test") or model.scores["test"].compute()
    if trainer.is_global_zero:
        refusal = found.refusal("test", data.max_bad_fraction)
        about = {
            "checkpoint": str(path),
            "network": network.name,
            "views": cfg.data.test_views,
            "refused": refusal or None,
        }
        figures = report.write_all(folder, found, data, "test", f"{network.name} on {data.name}", about)
        report.print_results(
            f"{network.name} on {data.name}, {data.describe_split('test')}, {cfg.data.test_views} views",
            figures,
            [
                ("checkpoint", shown(path)),
                ("pictures, scores", shown(folder)),
                ("in a browser", shown(folder / "report.html")),
            ],
        )
        # Last: a result is not lost for want of a page.
        write_report(folder)
        if refusal:
            raise RunError(f"{refusal}. {shown(folder / 'report.html')} has what was found; {kept.summary()}")
        kept.remove()
    return {f"test/{name}": value for name, value in found.metrics.items()}


if __name__ == "__main__":
    main()
