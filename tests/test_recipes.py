"""Ingredients of recipes in whole runs of train.py: documented commands, resuming, what is tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine import FULL_RECIPE, TINY_MODEL, documented, run_forked
from test_train import assert_same

from dtf.models import load_weights
from dtf.models.network import VideoNetwork
from dtf.runs.checkpoint import load_checkpoint

EVERYTHING = [
    *("mixing.mixup=0.8", "mixing.cutmix=1", "ema=0.8", "norm.precise_batches=3", "label_smoothing=0.1"),
    *("optim.layer_decay=0.75", "optim.lr_scale={*.dtf*:2}", "trainer.accumulate_grad_batches=2"),
    *("trainer.gradient_clip_val=1", "grad_checkpointing=true", "trainer.max_epochs=3", "data.num_workers=0"),
]


@pytest.fixture(scope="module")
def arguments(tiny_data: list[str]) -> list[str]:
    overridden = ("data.num_workers", "trainer.max_epochs")
    recipe = [a for a in [*tiny_data, *FULL_RECIPE] if not a.startswith(overridden)]
    return [*recipe, *EVERYTHING, "callbacks=none", "callbacks.last.every_n_steps=2"]


def test_a_run_with_everything_resumes_to_the_bit(command, arguments: list[str], tmp_path: Path) -> None:
    """Five batches and so three steps an epoch. Killed within an epoch; stopped within a validation, while
    the network has the averaged weights."""
    folders = [tmp_path / name for name in ("unbroken", "resumed")]
    signals = [("SIGKILL", 5, "batch"), ("SIGINT", 6, "validation")]
    unbroken, *broken, resumed = run_forked(
        [
            [*arguments, f"output={folders[0]}"],
            *(
                [
                    *(*arguments, f"output={folders[1]}"),
                    f"+callbacks.signal={{_target_:engine.SignalAtStep,signal:{name},step:{step},where:{where}}}",
                ]
                for name, step, where in signals
            ),
            [*arguments, f"output={folders[1]}"],
        ]
    )
    assert unbroken.code == 0, unbroken.err
    assert [outcome.code for outcome in broken] == [-9, 130]
    assert resumed.code == 0, resumed.err
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in folders)
    assert a["global_step"] == 9
    name = "network.backbone.fc.weight"
    assert not torch.equal(a["state_dict"][name], a["current_model_state"][name])
    state = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    for key in (*state, "global_step", "epoch"):
        assert_same(a[key], b[key], key)
    best, best_resumed = (load_checkpoint(f / "checkpoints" / "best.ckpt") for f in folders)
    assert_same(best.state_dict, best_resumed.state_dict)
    scores = [(f / "scores.csv").read_text() for f in folders]
    assert scores[0] == scores[1]

    # The best checkpoint's averaged weights are tested and shared, and what eval.py and predict load.
    exported, _ = load_weights(folders[0] / "model.safetensors")
    assert_same(dict(best.build_network().state_dict()), dict(exported.state_dict()))
    again = command("eval.py", f"checkpoint={best.path}", "trainer=cpu", f"output={tmp_path}/eval")
    assert again.code == 0, again.err
    assert (tmp_path / "eval" / "scores.csv").read_text() == scores[0]


TINY = [*TINY_MODEL, "logger=none", "callbacks=none", "trainer=cpu"]


def test_the_documented_command_with_most_ingredients(command, tiny_data: list[str], tmp_path: Path) -> None:
    arguments = documented("recipes.md", "mixing.mixup")
    done = command(*arguments, *tiny_data, *TINY, "trainer.max_epochs=1", f"output={tmp_path}/run")
    assert done.code == 0, done.err
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3, "five batches, two to a step"
    assert len({group["lr_scale"] for group in saved["optimizer_states"][0]["param_groups"]}) == 6
    config = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").config
    assert config["ema"] == 0.99
    assert config["mixing"] == {"mixup": 0.8, "cutmix": 1, "probability": 1.0, "switch": 0.5}
    assert "layer_5/decay" in done.out


def test_the_documented_scales(command, tiny_data: list[str], tmp_path: Path) -> None:
    arguments = documented("recipes.md", "optim.lr_scale")
    done = command(*arguments, *tiny_data, *TINY, "debug=step", f"output={tmp_path}/run")
    assert done.code == 0, done.err
    rows = {
        line.replace("│", " ").split()[0]: line.replace("│", " ").split()
        for line in done.out.splitlines()
        if "│" in line
    }
    assert [rows[f"{p}/decay"][3] for p in ("backbone", "backbone.fc", "*.dtf*")] == [
        "0.0002",
        "0.002",
        "0.002",
    ]


def test_frozen_norms_and_checkpointing_reach_the_network(
    command, tiny_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched = []
    monkeypatch.setattr(VideoNetwork, "set_grad_checkpointing", lambda *args: switched.append(args))
    settings = ["norm.freeze=true", "grad_checkpointing=true", "debug=step"]
    done = command("train.py", *tiny_data, *TINY, *settings, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    assert len(switched) == 1
    assert "norm.freeze without model.pretrained" in done.out
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict
    assert state["backbone.layer1.0.bn1.num_batches_tracked"] == 0
    assert state["backbone.layer1.0.dtf1.norm.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("ema=1", "ema must be null or a decay between 0 and 1"),
        ("mixing.mixup=-1", "mixing.mixup must be a number in 0..100, got -1"),
        ("mixing.mixupp=1", "there is no setting mixing.mixupp; did you mean mixing.mixup?"),
        ("+norm.freze=true", "there is no setting norm.freze; did you mean freeze?"),
        ("norm.precise_batches=-1", "norm.precise_batches must be a number of batches or 0"),
        ("optim.layer_decay=2", "optim: layer_decay must be null or a number above 0"),
        ("optim.lr_scale={backbon:0.1}", "optim.lr_scale.backbon fits no parameter; did you mean backbone?"),
    ],
)
def test_a_wrong_setting_is_one_line(command, tiny_data, tmp_path, setting: str, expected: str) -> None:
    done = command("train.py", *tiny_data, "debug=step", "logger=none", setting, f"output={tmp_path}/run")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err
