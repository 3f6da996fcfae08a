"""What a resumed run takes of the state in its checkpoint, which may come from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dtf.lit.build import build_network
from dtf.lit.callbacks import BestCheckpoint


def test_no_pretrained_weights_are_read_where_those_of_a_checkpoint_follow(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"name": "c2d_tiny", "pretrained": str(tmp_path / "gone.pth")})
    assert build_network(cfg, 3, 4, goes_on=True).name == "c2d_tiny"
    with pytest.raises((ValueError, OSError), match=r"gone\.pth"):
        build_network(cfg, 3, 4)


def test_the_best_checkpoints_state_names_checkpoints_of_this_folder_only(tmp_path: Path) -> None:
    """What it names is deleted when there is a better one, folders with all that is in them."""
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/top1", mode="max")
    state = best.state_dict() | {"dirpath": "/elsewhere", "best_model_score": torch.tensor(1.0)}
    for path in ("/elsewhere/..", "local:///home", "/home/user/thesis.tex"):
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            with pytest.raises(ValueError, match="state of the best checkpoint is damaged"):
                best.load_state_dict(state | {key: path})
        with pytest.raises(ValueError, match="state of the best checkpoint is damaged"):
            best.load_state_dict(state | {"best_k_models": {path: torch.tensor(1.0)}})
    best.load_state_dict(state | {"best_model_path": "memory://elsewhere/best.ckpt"})
    assert best.best_model_path == str(tmp_path / "best.ckpt")
