"""Runs of the version before layers, tasks and data sets were parts (commit 8131b53): its files still serve.

`tests/golden/before_seams` has a run that ended, and the same run as it was after three of its four steps.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import REPOSITORY

from dtf import report, sweep
from dtf.apply.graphs import load_network
from dtf.runs.resume import finished

RUNS = REPOSITORY / "tests" / "golden" / "before_seams"
LOGITS = [  # what that version answers to `video`
    *(-0.15385431, 0.11102404, -0.02044167, -0.03563160, 0.23269460),
    *(0.20248914, -0.47244591, 0.21446659, -0.05875227, -0.13821602),
]


def video() -> torch.Tensor:
    return torch.sin(37 * torch.arange(3 * 4 * 32 * 32)).view(1, 3, 4, 32, 32)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoints/best.ckpt"])
def test_its_weights_answer_as_they_did(name: str) -> None:
    network, class_names, data = load_network(RUNS / "finished" / name)
    assert network.name == "dtf_tiny"
    assert len(class_names) == 10
    assert (data["clip_length"], data["crop_px"]) == (4, 32)
    with torch.inference_mode():
        assert network(video())[0].tolist() == pytest.approx(LOGITS, abs=1e-5)


def test_its_run_has_a_page_and_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "finished"
    shutil.copytree(RUNS / "finished", folder)
    page = report.write_report(folder).read_text()
    for text in (
        "10.0%",
        "Confusion matrix of 10 classes",
        "Temporal filters of 8 blocks",
        "4,462 parameters",
    ):
        assert text in page, text
    assert "Left out" not in page
    found = json.loads((folder / "results.json").read_text())
    now = found["config"] | {"task": {"_target_": "wherever.it.is", "name": "classification"}}
    assert finished(folder, now | {"data": now["data"] | {"_target_": "moved", "since_then": None}})
    assert finished(folder, now | {"seed": 1}) is None
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=0\n")
    assert sweep.summarize(tmp_path / "runs") == 0
    assert f"{found['top1']:g}" in (tmp_path / "runs" / "summary.csv").read_text()


def test_its_run_goes_on_to_the_same_end(command, tmp_path: Path) -> None:
    """On one machine the scores are equal bit for bit; here the videos are written by another encoder."""
    folder = tmp_path / "run"
    shutil.copytree(RUNS / "cut", folder)
    done = command("train.py", f"resume={folder}", f"data.root={tmp_path}/motion")
    assert done.code == 0, done.err
    assert "going on after step 3" in done.out

    def scores(path: Path) -> np.ndarray:
        return np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(6, 16))

    ours, theirs = scores(folder / "scores.csv"), scores(RUNS / "finished" / "scores.csv")
    assert ours == pytest.approx(theirs, abs=0.01)
    assert theirs.std() > 0.02
