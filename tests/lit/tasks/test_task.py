"""A task that nothing under dtf/ knows, how bright a video is: trained, judged and shown like any other."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from engine import REPOSITORY, TINY_MODEL
from omegaconf import OmegaConf
from PIL import Image

from dtf import sweep
from dtf.apply.graphs import load_trained, read_task
from dtf.lit.scores import VideoResult, VideoScores
from dtf.lit.tasks.task import Step, Task
from dtf.runs.checkpoint import load_checkpoint
from dtf.runs.measure import Measure
from hydra_plugins.dtf_optuna import OptunaSweeper

YAML = "_target_: test_task.Brightness\nname: brightness\nscale: 1.0\n"


@dataclass(frozen=True)
class Errors(VideoResult):
    """How far the network was from each video's brightness."""

    @property
    def distance(self) -> np.ndarray:
        return np.abs(self.scores[:, 0] - self.label)[self.sound]

    @property
    def metrics(self) -> dict[str, float]:
        return {"error": float(self.distance.mean()), "worst": float(self.distance.max())}

    def describe(self, data, stage: str) -> dict[str, Any]:
        rows = [["odd_<name>", 1, float(self.distance.max())]]
        table = {"title": "Worst videos", "head": ["video", "views", "error"], "rows": rows}
        picture = {"file": "errors.png", "alt": "Errors of all videos, in the order of the list."}
        return super().describe(data, stage) | {"tables": [table], "pictures": [picture]}

    def write(self, folder: Path, data, stage: str, title: str) -> None:
        Image.new("L", (8, 8)).save(folder / "errors.png")


class Brightness(Task):
    """Regression of a number that stands in the list of videos: here their class, as a fraction."""

    name = "brightness"
    measures: ClassVar = (Measure("error", "mean error", "min"), Measure("worst", "worst error", "min"))
    counted = ("error",)

    def __init__(self, data, *, scale: float, **recipe: Any) -> None:
        super().__init__(data, **recipe)
        self.scale = scale

    @property
    def outputs(self) -> list[str]:
        return ["brightness"]

    def target(self, index, video: int, label: int) -> torch.Tensor:
        return torch.tensor(self.scale * int(index.labels[video]) / 10)

    def loss(self, network, batch: Mapping[str, Any]) -> Step:
        distance = (network(batch["video"])[:, 0] - batch["label"]).abs()
        return Step(distance.mean(), len(distance), {"error": distance.detach().sum()})

    def collector(self) -> VideoScores:
        return VideoScores(Errors)


class Unclear(Brightness):
    activation = "softplus"


@pytest.fixture(scope="module")
def arguments(tiny_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of train.py, for two epochs of the task that a folder of settings outside the house names."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "task").mkdir()
    (folder / "task" / "brightness.yaml").write_text(YAML)
    return [
        *(
            f"hydra.searchpath=[file://{folder}]",
            "task=brightness",
            *tiny_data,
            *TINY_MODEL,
        ),
        *("model.drop_path_rate=0", "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=2"),
    ]


def test_a_task_of_ones_own_from_training_to_the_page(command, arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    stop = "+callbacks.stop={_target_:engine.StopAtStep,step:3}"
    arguments = [*arguments, "callbacks.last.every_n_steps=1", f"output={folder}"]
    assert command("train.py", *arguments, stop).err.endswith("error: stopped at step 3\n")
    done = command("train.py", *arguments)
    assert done.code == 0, done.err
    assert "going on after step 3" in done.out
    assert "val mean error 0." in done.out

    found = json.loads((folder / "results.json").read_text())
    assert found["task"]["measures"][0]["name"] == "error"
    assert found["metrics"]["test/error"] == pytest.approx(found["error"], rel=1e-6)
    assert found["videos"] == 20
    # The best epoch is the one with the least error.
    curves = list(csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").open()))
    curves += list(csv.DictReader((folder / "csv" / "version_1" / "metrics.csv").open()))
    errors = [float(row["val/error"]) for row in curves if row.get("val/error")]
    assert found["metrics"]["val/error_best"] == pytest.approx(min(errors), rel=1e-5)
    best = load_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best.class_names == ["brightness"]
    assert best.activation == "none"
    assert best.epoch == 1 + int(np.argmin(errors))
    assert not (folder / "scores.csv").exists()

    page = (folder / "report.html").read_text()
    for text in ("mean error", "worst error", "Worst videos", "odd_&lt;name&gt;", "Errors of all videos"):
        assert text in page, text
    assert "top-" not in page
    assert "Left out" not in page

    # With others in a table: the least error is the best run.
    other = tmp_path / "runs" / "other"
    (other / ".hydra").mkdir(parents=True)
    (other / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    worse = found | {"error": 9.0, "metrics": found["metrics"] | {"val/error_best": 9.0}}
    (other / "results.json").write_text(json.dumps(worse))
    assert sweep.summarize(tmp_path / "runs") == 0
    rows = list(csv.DictReader((tmp_path / "runs" / "summary.csv").open()))
    assert [row["run"] for row in rows] == ["one", "other"]
    assert rows[1] | {"val/error_best": "9", "error": "9"} == rows[1]

    again = command("train.py", *arguments)
    assert f"is finished (test mean error {found['error']:.4g}): nothing to do" in again.out
    # What is measured is said by the checkpoint, and by the file of weights.
    evaluate = ["eval.py", arguments[0], "trainer=cpu", "data.num_workers=0", f"output={tmp_path}/eval"]
    checked = command(*evaluate, f"checkpoint={folder}/checkpoints/best.ckpt")
    assert checked.code == 0, checked.err
    tested = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert tested["error"] == pytest.approx(found["error"], rel=1e-5)
    assert read_task(folder / "model.safetensors") == "brightness"
    assert load_trained(folder / "model.safetensors").activation == "none"
    # Where no settings have a task of that name, or the user wants another one.
    weights = f"checkpoint={folder}/model.safetensors"
    evaluate.remove(arguments[0])
    unknown = command(*evaluate, weights)
    assert unknown.err.startswith(
        f"error: {folder}/model.safetensors was trained for task 'brightness', unknown"
    )
    assert unknown.err.count("\n") == 1
    best = f"checkpoint={folder}/checkpoints/best.ckpt"
    other = command(*evaluate, best, "task=classification")
    assert other.code == 1
    assert "brightness" in other.err


def test_what_the_task_cannot_follow_is_refused(command, arguments: list[str], tmp_path: Path) -> None:
    done = command("train.py", *arguments, "label_smoothing=0.1", f"output={tmp_path}")
    assert done.err.endswith(
        "error: task=brightness has no use for label_smoothing and mixing: leave them out\n"
    )
    done = command("train.py", *arguments, "task._target_=test_task.Unclear", f"output={tmp_path}")
    assert done.err.endswith(
        "error: task=brightness: activation must be one of softmax, sigmoid, none, got 'softplus'\n"
    )
    done = command("train.py", *arguments, "task._target_=test_task.Errors", f"output={tmp_path}")
    assert done.err.endswith("error: task: test_task.Errors is no task with the name 'brightness'\n")


def test_a_search_is_for_the_headline(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_trials": 1, "n_jobs": 1, "startup_trials": 1, "seed": 0, "params": {}}
    config = OmegaConf.create({"task": {"_target_": "test_task.Brightness"}})
    for task, given, expected in (
        (config, (None, None), ("val/error_best", "minimize")),
        (OmegaConf.create({}), (None, None), ("val/top1_best", "maximize")),
        (config, ("val/loss", "maximize"), ("val/loss", "maximize")),
    ):
        sweeper = OptunaSweeper(objective=given[0], direction=given[1], **settings)  # type: ignore[arg-type]
        sweeper.config = task
        sweeper._fill_objective()
        assert (sweeper.objective, sweeper.direction) == expected


def test_nobody_but_a_task_knows_its_headline() -> None:
    paths = [path for folder in ("dtf", "conf", "hydra_plugins") for path in (REPOSITORY / folder).rglob("*")]
    for path in [*paths, REPOSITORY / "train.py", REPOSITORY / "eval.py"]:
        if path.suffix in (".py", ".yaml", ".html") and path.name != "classification.py":
            assert not re.search(r"\btop-?[15]\b", path.read_text("utf-8")), path
