"""Networks of PyTorchVideo in whole runs: the documented commands, a sweep with DTF, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine import documented

from dtf.models import load_weights
from dtf.models.pytorchvideo import _import
from dtf.predict import main as predict
from dtf.runs.checkpoint import load_checkpoint

PAGE = "baselines.md"
STEP = ["debug=step", "callbacks=none", "logger=none", "trainer=cpu"]


SWEEP = documented(PAGE, "-m model=")


def test_the_sweep_is_one_over_models_and_learning_rates() -> None:
    """Its runs are tested below, in this process; that a sweep does each of them in test_sweep.py."""
    assert SWEEP[:2] == ["train.py", "-m"]
    assert [a.partition("=")[0] for a in SWEEP[2:]] == ["model", "optim.lr", "output"]
    assert len(SWEEP[3].split(",")) == 2


@pytest.mark.parametrize("model", SWEEP[2].partition("=")[2].split(","))
def test_each_run_of_the_sweep(command, tiny_data: list[str], tmp_path: Path, model: str) -> None:
    rate = SWEEP[3].split(",")[0]
    done = command("train.py", f"model={model}", rate, *tiny_data, *STEP, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").model["name"] == model
    assert 0 <= json.loads((tmp_path / "run" / "results.json").read_text())["top1"] <= 1


def test_a_run_its_checkpoint_and_a_prediction(
    command, tiny_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = documented(PAGE, "model=ptv_slowfast_r50")[1:]
    small = ["model.width=8", "trainer.max_epochs=1", "callbacks=none", "logger=none", "trainer=cpu"]
    folder = tmp_path / "run"
    done = command("train.py", *train, *tiny_data, *small, f"output={folder}")
    assert done.code == 0, done.err
    best = folder / "checkpoints" / "best.ckpt"
    arguments = load_checkpoint(best).model["arguments"]
    assert (arguments["depth"], arguments["alpha"], arguments["clip_length"]) == (18, 4, 4)
    assert load_weights(folder / "model.safetensors")[0].arguments == arguments
    done = command("eval.py", f"checkpoint={best}", "trainer=cpu", f"output={tmp_path}/eval")
    assert done.code == 0, done.err
    assert (tmp_path / "eval" / "scores.csv").read_text() == (folder / "scores.csv").read_text()

    root = Path(tiny_data[0].partition("=")[2])
    video = next((root / "test").rglob("*.mp4"))
    monkeypatch.chdir(tmp_path)
    assert predict([str(video), f"checkpoint={best}"]) == 0


def test_a_transformer(command, tiny_data: list[str], tmp_path: Path) -> None:
    train = documented(PAGE, "model=ptv_mvit_b")[1:]
    done = command("train.py", *train, *tiny_data, *STEP, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    arguments = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").model["arguments"]
    assert (arguments["image_size"], arguments["depths"]) == (32, [1, 1, 2, 1])


def test_published_weights(
    command, tiny_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official download with a file in place of its server, then that file by its name."""
    videos = command("train.py", *tiny_data, "model=c2d_tiny", *STEP, f"output={tmp_path}/videos")
    assert videos.code == 0, videos.err
    hub = _import("pytorchvideo.models.hub.x3d")
    torch.manual_seed(0)
    state = hub.x3d_s().state_dict()
    torch.save({"model_state": state}, tmp_path / "X3D_S.pyth")
    monkeypatch.setitem(hub.checkpoint_paths, "x3d_s", (tmp_path / "X3D_S.pyth").as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    frozen = ["optim.lr=0", "optim.weight_decay=0", "model.dropout=0"]
    tiny = [a for a in tiny_data if "clips_per_class" not in a]
    for part, name in (("model.pretrained=true", "a"), ("model.pretrained=X3D_S.pyth", "b")):
        train = documented(PAGE, part)[1:]
        train = [a.replace("=X3D_S.pyth", f"={tmp_path}/X3D_S.pyth") for a in train]
        done = command("train.py", *train, *tiny, *frozen, *STEP, f"output={tmp_path}/{name}")
        assert done.code == 0, done.err
        assert "those of 400 classes; the classifier of 10 starts fresh" in done.out + done.err
        network, metadata = load_weights(tmp_path / name / "model.safetensors")
        assert torch.equal(
            network.backbone.blocks[4].res_blocks[0].branch2.conv_b.weight,
            state["blocks.4.res_blocks.0.branch2.conv_b.weight"],
        )
        assert "0.45" in json.dumps(metadata)
    assert (tmp_path / "home" / "hub" / "checkpoints" / "X3D_S.pyth").is_file()


def test_errors_name_the_setting(command, tiny_data: list[str], tmp_path: Path) -> None:
    common = [*tiny_data, *STEP, f"output={tmp_path}/run"]
    done = command("train.py", "model=ptv_slowfast_r50", "model.alpha=3", *common)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "must be a multiple of alpha=3, got 4" in done.err
    done = command("train.py", "model=ptv_slow_r50", f"model.pretrained={tmp_path}/none.pyth", *common)
    assert done.code == 1
    assert f"no weights file {tmp_path}/none.pyth" in done.err
