"""Runs that are killed, stopped by signals and started again end as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from engine import FULL_RECIPE, run_forked
from test_train import assert_same

from dtf.lit.checkpoint import load_checkpoint


def signals(*sent: tuple[str, int, str]) -> list[list[str]]:
    """Overrides for one run after the other: signal, optimiser steps before it, where."""
    return [
        [f"+callbacks.signal={{_target_:engine.SignalAtStep,signal:{name},step:{step},where:{where}}}"]
        for name, step, where in sent
    ]


def test_killed_and_stopped_again_and_again(tiny_data: list[str], tmp_path: Path) -> None:
    """Four epochs of five batches, two batches a step: steps 3, 6, 9, 12 end an epoch. Each run goes on with
    what the one before it has left.

    At the end everything equals the unbroken run bit for bit: weights, their average, optimiser, schedule,
    place in the order of the videos, the best checkpoint (so no validation was lost), the scores.
    """
    recipe = [*tiny_data, *FULL_RECIPE, "trainer.accumulate_grad_batches=2", "ema=0.9", "mixing.mixup=0.8"]
    recipe += ["norm.precise_batches=2"]
    recipe += ["data.num_workers=0"]  # to save time; tests/test_train.py kills a run with workers
    folders = [tmp_path / name for name in ("unbroken", "broken")]
    rng = random.Random(0)
    broken = [*recipe, "callbacks.last.every_n_steps=2", f"output={folders[1]}"]
    sent = signals(
        ("SIGKILL", 1, "batch"),  # nothing is saved yet
        ("SIGKILL", rng.randint(2, 3), "saving"),  # what comes before a validation, or step 4
        ("SIGTERM", 4, "batch"),  # the first of the two batches of a step
        ("SIGKILL", 6, "validation"),
        ("SIGKILL", rng.randint(6, 7), "batch"),
        ("SIGINT", 8, "batch"),  # the last one of its epoch: stops in the validation
    )
    unbroken, *stopped, last = run_forked(
        [[*recipe, f"output={folders[0]}"], *([*broken, *signal] for signal in sent), broken]
    )
    assert unbroken.code == 0, unbroken.err
    assert [outcome.code for outcome in stopped] == [-9, -9, 143, -9, -9, 130], stopped
    assert last.code == 0, last.err
    assert stopped[2].err.splitlines() == [
        "SIGTERM: stops after this step",
        f"stopped by SIGTERM in epoch 2 after step 5; saved: {folders[1]}/checkpoints/last.ckpt; "
        f"python train.py resume={folders[1]} goes on",
    ]
    print(stopped[5].err)
    note, line = stopped[5].err.splitlines()[-2:]
    assert note == "SIGINT: stops after this step; Ctrl-C again ends at once"
    assert "in epoch 3 after step 9" in line

    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in folders)
    assert set(a) == set(b)
    for key in set(a) - {"dtf", "callbacks", "loops"}:
        assert_same(a[key], b[key], key)
    best = [load_checkpoint(f / "checkpoints" / "best.ckpt") for f in folders]
    assert best[0].epoch == best[1].epoch
    assert_same(best[0].state_dict, best[1].state_dict)
    scores = [(f / "scores.csv").read_text() for f in folders]
    assert scores[0] == scores[1]
    assert not list(tmp_path.rglob("*.part"))
