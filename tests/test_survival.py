"""Runs that are killed, stopped by signals and started again end as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from engine import FULL_RECIPE, run_forked
from test_train import assert_same

from dtf.lit.checkpoint import load_checkpoint


def test_killed_and_stopped_again_and_again(tiny_run: Path, tiny_data: list[str], tmp_path: Path) -> None:
    """Four epochs of five steps; each run goes on with what the one before it has left.

    At the end everything equals the unbroken run bit for bit: weights, optimiser, schedule, place in the
    order of the videos, the best checkpoint (so no validation was lost), the scores.
    """
    folder = tmp_path / "broken"
    arguments = [*tiny_data, *FULL_RECIPE, "callbacks.last.every_n_steps=2", f"output={folder}"]
    arguments += ["data.num_workers=0"]  # to save time; tests/test_train.py kills a run with workers
    rng = random.Random(0)
    signals = [
        ("SIGKILL", 1, "batch"),  # nothing is saved yet
        ("SIGKILL", rng.randint(4, 5), "saving"),  # step 4 within the epoch, step 5 before its validation
        ("SIGTERM", 7, "batch"),
        ("SIGKILL", 10, "validation"),
        ("SIGKILL", rng.randint(11, 13), "batch"),
        ("SIGINT", 14, "batch"),  # the last one of its epoch: stops in the validation
    ]
    runs = [
        [*arguments, f"+callbacks.signal={{_target_:engine.SignalAtStep,signal:{s},step:{n},where:{w}}}"]
        for s, n, w in signals
    ]
    *broken, last = run_forked([*runs, arguments])
    codes = [outcome.code for outcome in broken]
    assert codes == [-9, -9, 143, -9, -9, 130]
    assert last.code == 0, last.err
    stopped = [outcome.err.splitlines() for outcome in broken if outcome.code > 0]
    assert stopped[0] == [
        "SIGTERM: stops after this step",
        f"stopped by SIGTERM in epoch 2 after step 8; saved: {folder}/checkpoints/last.ckpt; "
        f"python train.py resume={folder} goes on",
    ]
    assert stopped[1][0] == "SIGINT: stops after this step; Ctrl-C again ends at once"
    assert "in epoch 3 after step 15" in stopped[1][1]

    unbroken, resumed = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (tiny_run, folder)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(unbroken[key], resumed[key], key)
    best, best_resumed = (load_checkpoint(f / "checkpoints" / "best.ckpt") for f in (tiny_run, folder))
    assert best.epoch == best_resumed.epoch
    assert_same(best.state_dict, best_resumed.state_dict)
    assert (tiny_run / "scores.csv").read_text() == (folder / "scores.csv").read_text()
    assert not list(tmp_path.rglob("*.part"))
