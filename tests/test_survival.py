"""Runs that are killed, stopped by signals and started again end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine import FULL_RECIPE, TINY_MODEL, documented, run_forked, run_subprocess
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from test_sweep import program, start, wait_for  # noqa: F401 - the first one is a fixture
from test_train import assert_same

from dtf.errors import RunError
from dtf.lit import build
from dtf.lit.survival import StopOnSignal
from dtf.runs.checkpoint import load_checkpoint


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
    assert "SIGINT: stops after this step; Ctrl-C again ends at once\n" in stopped[5].err
    assert "stopped by SIGINT in epoch 3 after step 9" in stopped[5].err

    epochs: list[dict[str, str]] = []
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in folders)
    assert set(a) == set(b)
    for key in set(a) - {"dtf", "callbacks", "loops"}:
        assert_same(a[key], b[key], key)
    best = [load_checkpoint(f / "checkpoints" / "best.ckpt") for f in folders]
    assert best[0].epoch == best[1].epoch
    assert_same(best[0].state_dict, best[1].state_dict)
    scores = [(f / "scores.csv").read_text() for f in folders]
    assert scores[0] == scores[1]
    # Nor do the figures of an epoch depend on where it was cut.
    metrics = [json.loads((f / "results.json").read_text())["metrics"] for f in folders]
    speed = {"train/clips_per_s", "train/data_wait", "train/memory_gib"}
    assert_same(*({k: v for k, v in m.items() if k not in speed} for m in metrics))
    assert {"train/top1", "train/loss_epoch", "val/top1", "val/top1_best", "test/top1"} <= metrics[1].keys()
    for folder, outcomes in zip(folders, ([unbroken], [*stopped, last]), strict=True):
        printed = [line.split("  clips/s")[0] for o in outcomes for line in o.out.splitlines()]
        lines = {line.split()[1]: line for line in printed if line.startswith("epoch ")}
        assert list(lines) == ["1/4", "2/4", "3/4", "4/4"], folder
        epochs.append(lines)
    assert epochs[0] == epochs[1]
    assert not list(tmp_path.rglob("*.part"))


def test_a_job_of_slurm_is_requeued(command, tiny_data, tmp_path: Path, monkeypatch) -> None:
    """Slurm's early warning; with a last checkpoint switched off there is none."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/called"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = command(
        *(*documented("distributed.md", "every_n_steps=500"), *tiny_data, *TINY_MODEL, "data.batch_size=10"),
        *("callbacks=none", "logger=none", *signals(("SIGUSR1", 0, "batch"))[0], f"output={tmp_path}/run"),
        "callbacks.last=null",
    )
    assert done.code == 128 + 10, done.err
    assert "in epoch 1 after step 1; saved: nothing; " in done.err
    assert f"resume={tmp_path}/run starts again\njob 7 is requeued\n" in done.err
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (tmp_path / "called").read_text() == "requeue 7\n"


def test_a_sweep_waits_for_its_run_to_save_and_stops(program: Path) -> None:  # noqa: F811
    """SIGTERM to the sweep alone; its run, in a process of its own, takes a while to end."""
    work = program / "work.py"
    save = "lambda *_: (time.sleep(0.5), (folder / 'saved').touch(), sys.exit(143))"
    line = f"    signal.signal(signal.SIGTERM, {save})\n    steps ="
    work.write_text(work.read_text().replace("    steps =", line))
    process = start(program, "part=a,b", WAIT="a")
    wait_for(program / "out" / "part-a" / "steps.txt")
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert (program / "out" / "part-a" / "saved").exists()
    assert not (program / "out" / "part-b").exists()
    assert "1 unfinished" in out


def test_a_test_ends_at_once(command, tiny_data: list[str], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = command(
        *(*documented("distributed.md", "nonfinite=skip"), *tiny_data, *TINY_MODEL, "debug=step"),
        *("callbacks=none", "logger=none", *signals(("SIGTERM", 0, "test"))[0], f"output={tmp_path}/run"),
    )
    assert done.code == 143
    assert not (tmp_path / "run" / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) == before

    # What the training logged is in the results all the same.
    trusted = documented("distributed.md", "trust=true")
    done = command(*(a.replace("outputs/DAY/TIME", f"{tmp_path}/run") for a in trusted), "~callbacks.signal")
    assert done.code == 0, done.err
    saved = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    assert saved.endswith("- ~callbacks.signal\n"), "what the run has gone on with"
    assert "going on after step" in (tmp_path / "run" / "train.log").read_text()
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert {"train/loss", "train/loss_epoch", "val/top1", "val/top1_best", "test/top1"} <= metrics.keys()


def test_a_full_disk(command, tiny_data: list[str], tmp_path: Path) -> None:
    """The second epoch's checkpoint finds no room (every writer by itself: tests/lit/test_files.py)."""
    arguments = [*tiny_data, *TINY_MODEL, "debug=step", "callbacks=none", f"output={tmp_path}/run"]
    assert command("train.py", *arguments).code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    (tmp_path / "run" / "results.json").unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        done = command("train.py", *arguments, "trainer.max_epochs=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    (error,) = errors
    assert f"cannot write {last}: File too large; the last whole last.ckpt is kept; free some" in error
    assert last.read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopOnSignal(tmp_path)
    stop._note(signal.SIGINT, None)
    stop._note(signal.SIGINT, None)  # the terminal and a launcher may both pass the first one on
    stop._since -= 2
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)
    assert capfd.readouterr().err == "SIGINT: stops after this step; Ctrl-C again ends at once\n"


def test_a_failed_run_takes_its_other_processes_along(tmp_path: Path) -> None:
    """Lightning watches them, and would kill this process because of the exit code of those."""

    class Trainer:
        loggers: tuple = ()
        strategy = type("Strategy", (), {})()

    launcher = Trainer.strategy.launcher = _SubprocessScriptLauncher(LightningEnvironment(), 2, 1)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher.procs.append(process)
    start = time.monotonic()
    with pytest.raises(RunError, match="ours"), build.running(Trainer()):  # type: ignore[arg-type]
        raise RunError("ours")
    assert process.returncode == -9
    assert launcher.procs == []
    assert time.monotonic() - start < 30


def test_documented_commands_over_two_processes(tiny_data: list[str], tmp_path: Path) -> None:
    """docs/distributed.md: a run over two processes is stopped by SIGTERM; torchrun goes on with it."""
    small = [*tiny_data, *TINY_MODEL, "trainer.max_epochs=2", "callbacks=none", "logger=none"]
    small += ["data.batch_size=5", f"output={tmp_path}/run"]
    done = run_subprocess(
        *documented("distributed.md", "python train.py trainer=ddp_sim"),
        *(*small, *signals(("SIGTERM", 1, "batch"))[0]),
        PYTHONPATH="tests",
    )
    assert done.code == 143, done.err
    assert "stopped by SIGTERM in epoch 1 after step 2; saved: " in done.err
    done = run_subprocess(*documented("distributed.md", "torch.distributed.run"), *small)
    assert done.code == 0, done.err
    assert "going on after step 2 (epochs finished: 0)" in done.out
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4, "20 videos, 5 on each of two processes, 2 epochs"
    assert (tmp_path / "run" / "results.json").exists()
    assert len(list(tmp_path.rglob(".hydra"))) == 1
