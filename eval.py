"""Evaluate a checkpoint on N clips x M crops of each video: `python eval.py --help`, conf/eval.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf.runs.command import command
from dtf.runs.folder import refuse_training, run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _prepare(arguments: list[str]) -> list[str]:
    from dtf.apply.graphs import read_data, read_task
    from dtf.runs.from_checkpoint import choose_data, choose_task

    for argument in arguments:
        if argument.startswith("output="):
            refuse_training(Path(argument.removeprefix("output=").strip("'\"")))
    return choose_task(choose_data(arguments, read_data), read_task)


@command("eval", prepare=_prepare)
def main(cfg: DictConfig) -> dict[str, float]:
    """Test a checkpoint and write results.json, report.html and the files of its task.

    What is cut off goes on where it stopped when it is started again with the same `output`. Where too many
    videos are broken, the files are written and the command fails.

    Returns:
        The metrics, {"test/NAME": ...}.
    """
    from dtf.lit import evaluation
    from dtf.lit.build import running
    from dtf.report import write_report

    folder = run_folder()
    refuse_training(folder)
    run = evaluation.build_evaluation(cfg, folder)
    with running(run.trainer):
        result = evaluation.test(run)
    if run.trainer.is_global_zero:
        evaluation.report(run, result)
        # Last: a result is not lost for want of a page.
        write_report(folder)
        evaluation.close(run, result)
    return {f"test/{name}": value for name, value in result.metrics.items()}


if __name__ == "__main__":
    main()
