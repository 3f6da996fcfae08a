"""Train a network and test it: `python train.py --help`, settings in conf/train.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf.runs import resume
from dtf.runs.command import command
from dtf.runs.folder import run_folder

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
        ("val/NAME_best"), those of the test ("test/NAME", ...). results.json keeps them. Without validation
        (data.splits.val=null) there is no best checkpoint, and without a test split as well no evaluation.
    """
    from dtf.lit import training
    from dtf.lit.build import running
    from dtf.lit.lr_finder import LearningRateSearch, find_lr
    from dtf.report import write_report

    folder = run_folder()
    training.check_settings(cfg)
    if (done := training.finished(cfg, folder)) is not None:
        return done
    data, model = training.build_model(cfg, folder)
    if isinstance(model, LearningRateSearch):
        return find_lr(model, data, cfg, folder)
    run = training.build_training(cfg, folder, data, model)
    with running(run.trainer):
        training.fit(run)
        training.test(run)
    if run.trainer.is_global_zero:
        training.report(run)
        # Last: a result is not lost for want of a page.
        write_report(folder)
    return run.metrics


if __name__ == "__main__":
    main()
