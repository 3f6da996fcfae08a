"""What a resumed run takes of the state in its checkpoint, which may come from anywhere."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from engine import classifier
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Timer
from torch.utils.data import DataLoader, default_collate

from dtf.lit.averaging import AverageWeights
from dtf.lit.build import build_network
from dtf.lit.callbacks import BestCheckpoint, BrokenVideos
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.lit.engine import Engine
from dtf.lit.state import check_state
from dtf.lit.survival import LastCheckpoint
from dtf.models import create_model


def test_no_pretrained_weights_are_read_where_those_of_a_checkpoint_follow(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"name": "c2d_tiny", "pretrained": str(tmp_path / "gone.pth")})
    assert build_network(cfg, 3, 4, goes_on=True).name == "c2d_tiny"
    with pytest.raises((ValueError, OSError), match=r"gone\.pth"):
        build_network(cfg, 3, 4)


def test_the_best_checkpoints_state_names_checkpoints_of_this_folder_only(tmp_path: Path) -> None:
    """What it names is deleted when there is a better one, folders with all that is in them."""
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/top1", mode="max")
    state = best.state_dict() | {"dirpath": "/elsewhere", "best_model_score": torch.tensor(1.0)}
    for path in ("/elsewhere/..", "local:///home", "/home/user/thesis.tex", "/x::memory.ckpt", "a\nb.ckpt"):
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            with pytest.raises(ValueError, match="state of the best checkpoint is damaged"):
                best.load_state_dict(state | {key: path})
        with pytest.raises(ValueError, match="state of the best checkpoint is damaged"):
            best.load_state_dict(state | {"best_k_models": {path: torch.tensor(1.0)}})
    best.load_state_dict(state | {"best_model_path": "memory://elsewhere/best.ckpt"})
    assert best.best_model_path == str(tmp_path / "best.ckpt")


DATA = {"video": torch.rand(3, 4, 16, 16), "label": 0, "video_index": 0, "view_index": 0}


class Clips(pl.LightningDataModule):
    """Two batches of one clip."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader([DATA, DATA], collate_fn=lambda samples: default_collate(samples) | {"error": [[]]})


def new_run(folder: Path) -> tuple[pl.Trainer, Engine]:
    """A run that has not begun, of two epochs."""
    torch.manual_seed(0)
    network = create_model("c2d_tiny", num_classes=2, clip_length=4, widths=[8] * 4, stem_width=8)
    best = BestCheckpoint(dirpath=folder, filename="best", monitor="train/loss_epoch", mode="min")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[
            AverageWeights(0.9),
            BrokenVideos(0.5),
            Timer(),
            best,
            LastCheckpoint(folder / "last.ckpt"),
        ],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, classifier(network, 2, {"name": "adamw", "lr": 0.01})


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of an epoch."""
    folder = tmp_path_factory.mktemp("left")
    trainer, model = new_run(folder)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(model, datamodule=Clips())
    return folder / "last.ckpt"


def test_a_sound_state_is_taken_and_nothing_is_changed(left: Path) -> None:
    trainer, model = new_run(left.parent)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_state(left, trainer, model)
    check_state(left.parent / "best.ckpt", trainer, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trainer.fit(model, datamodule=Clips(), ckpt_path=left, weights_only=True)
    assert trainer.global_step == 4


FIT = ("loops", "fit_loop")
GONE = object()
DEEP: Any = functools.reduce(lambda inner, _: [inner], range(200), [])


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (("pytorch-lightning_version",), [None, 2, "x", "1.9.0", GONE]),
        (("state_dict", "network.backbone.fc.weight"), [GONE, torch.zeros(3)]),
        (("current_model_state",), [None, {}, DEEP]),
        (("current_model_state", "network.backbone.fc.bias"), ["x", 1j, GONE, torch.zeros(7), 2**70]),
        (("averaging_state", "n_averaged"), [None, 3, torch.zeros(3), GONE]),
        (("loops",), [None, {}, [], "x", GONE]),
        (FIT, [None, [], DEEP]),
        ((*FIT, "epoch_progress"), [None, {}, 3]),
        ((*FIT, "epoch_progress", "current", "completed"), ["x", -1, 2**70, 0.5, math.nan, True, GONE]),
        ((*FIT, "epoch_loop.batch_progress", "is_last_batch"), ["x", None, GONE]),
        ((*FIT, "epoch_loop.state_dict", "_batches_that_stepped"), [None, "x", -3]),
        ((*FIT, "state_dict", "combined_loader"), [3, ["x"], [{"epoch": 0}], [{"epoch": 0, "batches": -1}]]),
        (("optimizer_states",), [None, [], [{}], ["x"], GONE]),
        (("optimizer_states", 0, "param_groups"), [None, [], [{}], DEEP]),
        (("optimizer_states", 0, "param_groups", 0, "lr"), ["x", None, math.nan, 2**2000, [1.0]]),
        (("optimizer_states", 0, "param_groups", 0, "betas"), [0.9, (0.9,), ("a", "b"), GONE]),
        (("optimizer_states", 0, "state"), [None, [1], {0: 3}, {9999: {}}]),
        (("optimizer_states", 0, "state", 0, "exp_avg"), ["x", torch.zeros(3), 2**70, None, GONE]),
        (("lr_schedulers",), [None, [], ["x"], GONE]),
        (("lr_schedulers", 0, "last_epoch"), ["x", None, -7, 2**70, GONE]),
        (("lr_schedulers", 0, "lr_lambdas"), [None, [None, "x"], [{}, None]]),
        (("lr_schedulers", 0, "step"), [3]),
        (("callbacks",), [None, [], "x"]),
        (("callbacks", "Timer", "time_elapsed"), [None, {"train": "x"}]),
        (("callbacks", "Timer", "time_elapsed", "train"), ["x", None, math.inf]),
        (("callbacks", "LastCheckpoint", "metrics"), [None, {"a": "x"}, {"a": torch.zeros(3)}]),
        (("callbacks", "BrokenVideos", "videos"), [3, ["x"], [[1, 2]], [["a", None]], DEEP]),
        (("callbacks", "AverageWeights", "latest_update_step"), ["x", None, GONE]),
        (("train_metrics",), [None, 3, {"x": {}}, [3]]),
        (("train_metrics", "train/loss_epoch"), [None, {}, {"total": 1.0, "count": 1.0}]),
        (("train_metrics", "train/loss_epoch", "total"), [torch.zeros(3), "x"]),
        (("nonfinite",), [None, {}, {"steps": "x", "in_a_row": 0, "lines": []}]),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_damaged_state_is_one_line_before_the_run_is_touched(
    left: Path, tmp_path: Path, place: tuple[Any, ...], values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, model = new_run(tmp_path)
    content = torch.load(left, weights_only=True)
    monkeypatch.setattr("dtf.lit.state.read_content", lambda path, mmap: content)
    *way, last = place
    entry = functools.reduce(lambda found, key: found[key], way, content)
    for value in values:
        kept = dict(entry)
        entry[last] = value
        if value is GONE:
            del entry[last]
        with pytest.raises(ValueError, match=f"last.ckpt: damaged state of the run: {place[0]}: ") as fault:
            check_state(Path("last.ckpt"), trainer, model)
        assert "\n" not in str(fault.value)
        assert len(str(fault.value)) < 400
        entry.clear()
        entry.update(kept)
