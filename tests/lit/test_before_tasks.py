"""Files that were written before there were tasks: a checkpoint within an epoch, settings, results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from engine import REPOSITORY, classifier
from test_engine import SGD, Data, Record
from torch import nn

from dtf.errors import RunError
from dtf.files import write_json
from dtf.lit.tasks.classification import Classification
from dtf.runs.checkpoint import Checkpoint
from dtf.runs.measure import Measure, measures
from dtf.runs.resume import check_same_run, finished

FILES = REPOSITORY / "tests" / "golden" / "lit"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.norm(video.mean((3, 4)).flatten(1))))


def test_its_checkpoint_is_gone_on_with() -> None:
    """The file is of a run that was left after five of six steps; the list is what the version that wrote
    it did when it went on.

    Tolerance: sums in another order on another machine. Bit-exactness is `tests/test_survival.py`.
    """
    expected = json.loads((FILES / "before_tasks.json").read_text())
    record, model = Record(), classifier(Network(), 2, SGD, label_smoothing=0.1, nonfinite="skip")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=Data(), ckpt_path=FILES / "before_tasks.ckpt", weights_only=True)
    assert record.losses == pytest.approx(expected["losses"], rel=1e-5)
    assert model.nonfinite.steps == 3
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found == pytest.approx(expected["metrics"], rel=1e-5)


def test_its_settings_are_those_of_classification(tmp_path: Path) -> None:
    old = {"seed": 0, "model": {"name": "dtf_tiny"}}
    task = {"name": "classification", "_target_": "wherever.it.is"}
    write_json(tmp_path / "results.json", {"top1": 0.5, "config": old, "metrics": {"val/top1_best": 0.6}})
    assert finished(tmp_path, old | {"task": task}) is not None
    assert finished(tmp_path, old | {"task": task | {"name": "other"}}) is None
    write_json(tmp_path / "results.json", {"config": old | {"task": task | {"_target_": "before.it.moved"}}})
    assert finished(tmp_path, old | {"task": task}) is not None
    description = {"model": {"name": "dtf_tiny", "arguments": {}}, "config": old | {"task": task}}
    checkpoint = Checkpoint(tmp_path, {}, description["model"], [], {}, old, "softmax", 0, 0)
    assert check_same_run(checkpoint, description) == []
    description["config"] = old | {"task": task | {"name": "other"}}
    with pytest.raises(RunError, match=r"task\.name: classification -> other"):
        check_same_run(checkpoint, description)


def test_its_results_are_those_of_classification() -> None:
    assert measures(None) == list(Classification.measures)
    assert measures(Classification.description()) == list(Classification.measures)
    assert measures(None)[0].format(0.9321, 1) == "93.2%"


@pytest.mark.parametrize(
    "description",
    [
        {},
        [],
        {"measures": []},
        {"measures": [{}]},
        {"measures": [{"name": 1, "title": "x"}]},
        {"measures": [{"name": "x", "title": "x", "mode": "up"}]},
        {"measures": ["x"] * 99},
    ],
)
def test_a_task_that_is_none_is_refused(description) -> None:
    with pytest.raises(ValueError, match="its task tells"):
        measures(description)
    assert Measure("error", "error", "min").format(0.125) == "0.125"
