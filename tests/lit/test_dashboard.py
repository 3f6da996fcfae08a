"""What the loggers are given: read back from wandb's file and from TensorBoard's events."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from engine import REPOSITORY, TINY_MODEL, documented
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import get_total_norm
from wandb_file import read_records

from dtf.lit import dashboard, loggers
from dtf.lit.about import git_state
from dtf.lit.dashboard import Dashboard, _markdown
from dtf.view import pictures

SMALL = [*TINY_MODEL, "trainer=cpu", "trainer.log_every_n_steps=2", "trainer.limit_train_batches=4"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of wandb from outside, and none left behind: Lightning sets WANDB_MODE."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))


class WandbRun:
    """What one offline file of wandb says."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent / "files"
        self.config: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.history: dict[str, list[Any]] = defaultdict(list)
        for record in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "config":
                self.config |= {i.key: json.loads(i.value_json) for i in record.config.update}
            elif kind == "metric":
                name = record.metric.name or record.metric.glob_name
                self.axes[name] = record.metric.step_metric or self.axes.get(name, "")
            elif kind == "history":
                for item in record.history.item:
                    self.history[item.key or "/".join(item.nested_key)].append(json.loads(item.value_json))


def wandb_runs(folder: Path) -> list[WandbRun]:
    return [WandbRun(p) for p in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def test_wandb_gets_everything_and_goes_on_after_a_stop(
    command, tiny_data: list[str], tmp_path: Path
) -> None:
    arguments = [*documented("dashboards.md", "logger=wandb logger.wandb.offline=true"), *tiny_data, *SMALL]
    arguments += ["trainer.max_epochs=2", f"output={tmp_path}/run"]
    stop = "+callbacks.stop={_target_:engine.StopAtStep,step:5}"
    assert command(*arguments, stop).err.endswith("error: stopped at step 5\n")
    done = command(*arguments)
    assert done.code == 0, done.err
    first, second = wandb_runs(tmp_path / "run")
    assert first.run.run_id == second.run.run_id
    assert second.run.display_name == "run"
    assert not second.run.run_group

    # The settings as they were resolved, and the state of the code without any of its text.
    assert second.config["model"]["name"] == "dtf_tiny"
    assert second.config["data"]["clip_length"] == 4
    about = second.config["about"]
    assert about["git"] == git_state()
    assert about["command"].startswith("python train.py logger=wandb logger.wandb.offline=true ")
    assert not second.run.HasField("git")
    assert not list((tmp_path / "run" / "wandb").rglob("*.patch"))

    # Curves: 4 steps an epoch, every second one logged; the part after the stop has the second epoch alone.
    assert [len(r.history["train/loss"]) for r in (first, second)] == [2, 2]
    assert [len(r.history["val/top1"]) for r in (first, second)] == [1, 1]
    assert second.axes["train/loss"] == second.axes["train/grad_norm"] == "trainer/global_step"
    assert second.axes["val/*"] == second.axes["val/top1"] == second.axes["train/*"] == "epoch"
    for name in ("train/clips_per_s", "train/data_wait", "train/memory_gib", "train/grad_norm", "test/top1"):
        assert all(value >= 0 for value in second.history[name]), name
        assert second.history[name], name
    assert 0.05 < second.history["train/memory_gib"][0] < 100

    # Pictures and tables, as files.
    def stored(key: str) -> Path:
        return second.folder / second.history[f"{key}/path"][-1]

    for key in ("val/confusion", "test/confusion", "filters/frequencies"):
        assert Image.open(stored(key)).size > (200, 200), key
    classes = json.loads(stored("test/classes").read_text())
    assert classes["columns"] == ["class", "videos", "right", "accuracy"]
    assert [row[1] for row in classes["data"]] == [2] * 10
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sum(row[2] for row in classes["data"]) == round(20 * found["top1"])
    pairs = json.loads(stored("test/confused_pairs").read_text())["data"]
    assert [[p["class"], p["taken_for"], p["videos"]] for p in found["confused_pairs"]] == pairs[:10]

    # Clips: the frames of a video, with truth and prediction.
    captions = second.history["test/clips/captions"][-1]
    assert len(captions) == 4
    rows = list(csv.DictReader((tmp_path / "run" / "scores.csv").open()))
    for row, caption in zip((rows[i] for i in (0, 6, 13, 19)), captions, strict=True):
        mark = "right" if row["right"] == "1" else "wrong"
        assert caption.startswith(f"{mark}: {row['class']}, taken for {row['prediction']} (")
    clip = second.folder / second.history["test/clips/videos"][-1][0]["path"]
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (4, 192, 192, 3)
    assert np.std(np.stack(frames)) > 5

    # Filters: histograms of each block, and what report.html draws.
    blocks = [f"layer{i}.0.dtf{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    for block in blocks:
        assert sum(second.history[f"filters/alpha/{block}/values"][-1]) in (8, 16)
    energies = json.loads((tmp_path / "run" / "filters.json").read_text())
    assert list(energies) == [f"backbone.{block}" for block in blocks]
    for found in energies.values():
        assert found["over"] == "frequencies"
        assert list(found["energies"]) == ["mean over time", "1 per clip", "2 per clip"]
        assert sum(found["energies"].values()) > 0


def test_tensorboard_gets_the_same_and_training_does_not_notice(
    command, tiny_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(dashboard, "get_total_norm", lambda g: measured.append(g) or get_total_norm(g))
    arguments = [*documented("dashboards.md", "logger=tensorboard callbacks.dashboard.every_n_epochs")]
    arguments += [*tiny_data, *SMALL, "trainer.max_epochs=3", "trainer.gradient_clip_val=0.001"]
    rarely = "callbacks.dashboard.every_n_epochs=2"
    done = command(*arguments, rarely, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    # After the second epoch and the last one, which is the third.
    assert [e.step for e in events.Images("val/confusion")] == [8, 12]
    assert {"test/confusion", "filters/frequencies", *(f"val/clips/{i}" for i in range(4))} <= set(
        tags["images"]
    )
    clip = Image.open(io.BytesIO(events.Images("val/clips/0")[0].encoded_image_string))
    assert (clip.format, clip.n_frames, clip.size) == ("GIF", 4, (192, 192))  # type: ignore[attr-defined]
    assert {"filters/alpha/layer1.0.dtf1", "filters/weight/layer4.0.dtf2"} <= set(tags["histograms"])
    text = events.Tensors("test/classes/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("| class | videos | right | accuracy |\n| --- |")
    assert "bright&#95;then&#95;dark | 2 |" in text
    # Before clipping, at every second of the 12 steps.
    norms = events.Scalars("train/grad_norm")
    assert [e.step for e in norms] == [1, 3, 5, 7, 9, 11]
    assert all(e.value > 0.01 for e in norms)
    assert len(measured) == 6, "a norm that is not logged costs nothing"

    without = documented("dashboards.md", "logger=tensorboard callbacks.dashboard=null")
    settings = [a for a in arguments if "dashboard" not in a][1:]
    settings = [*without[1:], *[a for a in settings if not a.startswith("logger")]]
    done = command("train.py", *settings, f"output={tmp_path}/without")
    assert done.code == 0, done.err
    assert not (tmp_path / "without" / "filters.json").exists()
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "without")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_runs_of_a_sweep_are_one_group(command, tiny_data: list[str], tmp_path: Path) -> None:
    """With both loggers, a network without filters, and no clips."""
    arguments = documented("dashboards.md", "logger=[wandb,tensorboard]")
    done = command(
        *(arguments[0], "-m", *arguments[1:], "seed=1", "model=c2d_tiny", *tiny_data, "debug=step"),
        *("callbacks.dashboard.num_clips=0", f"output={tmp_path}/2030-01-01/12-00-00"),
    )
    assert done.code == 0, done.err
    (folder,) = (f.parent for f in (tmp_path / "2030-01-01" / "12-00-00").glob("*/wandb"))
    (run,) = wandb_runs(folder)
    assert run.run.run_group == "2030-01-01 12-00-00"
    assert run.run.display_name == folder.name
    assert "val/confusion/path" in run.history
    assert not any(key.startswith(("filters", "val/clips")) for key in run.history)
    assert list((folder / "tensorboard").glob("events*"))


def test_every_command_of_the_page_composes() -> None:
    text = (REPOSITORY / "docs" / "dashboards.md").read_text()
    lines = [
        shlex.split(line, comments=True) for line in re.findall(r"^python train.py .*$", text, flags=re.M)
    ]
    assert len(lines) == 8
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        for words in lines:
            assert compose("train", overrides=words[2:]).logger.csv is not None


def test_a_run_keeps_its_id_and_a_copy_of_its_name_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    one = loggers._run_id(tmp_path / "a")
    assert loggers._run_id(tmp_path / "a") == one
    assert re.fullmatch(r"[0-9a-f]{8}", one)
    assert loggers._run_id(tmp_path / "b") != one
    (tmp_path / "a" / "wandb" / "run_id.txt").write_text("../../evil")
    assert re.fullmatch(r"[0-9a-f]{8}", loggers._run_id(tmp_path / "a"))
    # The first process of the second machine must not write over the id of the first one's.
    monkeypatch.setenv("NODE_RANK", "1")
    loggers._run_id(tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("settings", [{"every_n_epochs": 0}, {"num_clips": -1}])
def test_wrong_settings(settings) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.dashboard\.\w+ must be at least"):
        Dashboard(**settings)


def test_names_are_no_markup_in_tables() -> None:
    text = _markdown(("class", "accuracy"), [("<script>a|b\n", 0.5), ("![x](y)", None)])
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2] == "| &#60;script&#62;a&#124;b&#92;n | 50&#46;0% |"
    assert not set("<>[]!") & set(text)


def test_state_of_the_code(tmp_path: Path) -> None:
    state = git_state()
    assert state is None or (
        re.fullmatch(r"[0-9a-f]{40}", state["commit"]) and state["dirty"] in (True, False)
    )
    # A folder without a repository of its own, be it inside of one.
    assert git_state(tmp_path) is None
    assert git_state(Path(__file__).parent) is None


def test_the_most_confused_of_many_classes() -> None:
    matrix = np.diag(np.full(100, 50))
    matrix[7, 93], matrix[12, 55], matrix[3, 7] = 9, 8, 1
    assert pictures.most_confused(matrix, 4).tolist() == [7, 12, 55, 93]
    assert pictures.most_confused(matrix[:40, :40]).tolist() == list(range(40))
    assert len(pictures.most_confused(matrix)) in (24, 25)


def test_sizes_that_an_encoder_takes() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 65, 97, 3), dtype=np.uint8)
    large = pictures.enlarged(frames)
    assert large.shape == (3, 194, 290, 3)
    assert (large[:, ::3, ::3] == frames[:, :, :97]).all()
    assert pictures.encode_mp4(large, 8)[4:8] == b"ftyp"
    assert pictures.strip(frames, 8, 30).shape == (30, 90, 3)
