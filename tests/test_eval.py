"""eval.py: views, processes, data settings from the checkpoint, wrong inputs."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import REPOSITORY, run_subprocess

from dtf.apply.export import export
from dtf.apply.graphs import read_data
from dtf.lit.scores import VideoScores
from dtf.runs.from_checkpoint import choose_data


def read_scores(folder: Path) -> dict[str, dict[str, str]]:
    """scores.csv by video, each of which must be there once."""
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    by_video = {row["video"]: row for row in rows}
    assert len(by_video) == len(rows)
    return by_video


@pytest.fixture(scope="module")
def odd_tree(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set with six good test videos and a text file named .mp4, all ten classes."""
    config = json.loads((tiny_run / "results.json").read_text())["config"]
    root = tmp_path_factory.mktemp("odd") / "tree"
    source = Path(config["data"]["root"])
    shutil.copytree(source / "train", root / "train")
    videos = sorted((source / "test").rglob("*.mp4"))
    for video in videos[:18:3]:
        target = root / "test" / video.parent.name / video.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, target)
    broken = root / "test" / "grow" / "broken.mp4"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("no video\n")
    return root


def test_two_processes_equal_one(command, tiny_checkpoint: Path, odd_tree: Path, tmp_path: Path) -> None:
    common = [f"checkpoint={tiny_checkpoint}", "data=folder", f"data.root={odd_tree}", "views=3x3"]
    common += ["data.num_workers=0", "data.batch_size=9", "data.max_bad_fraction=0.2"]
    one = command("eval.py", *common, "trainer=cpu", f"output={tmp_path}/one")
    assert one.code == 0, one.err
    # Two processes go on with what one has left.
    stop = "+callbacks.stop={_target_:engine.SignalAtStep,signal:SIGTERM,step:2,where:test}"
    cut = command("eval.py", *common, stop, "trainer=cpu", f"output={tmp_path}/two")
    assert cut.code == 143, cut.err
    two = run_subprocess(
        "eval.py",
        *(*common, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", f"output={tmp_path}/two"),
    )
    assert two.code == 0, two.err
    assert "scores of 2 of 7 videos are there already" in two.out
    assert not (tmp_path / "two" / "scores").exists()

    alone, together = read_scores(tmp_path / "one"), read_scores(tmp_path / "two")
    assert len(alone) == 7, "an odd number: one of two processes repeats a video"
    assert alone.keys() == together.keys()
    for video, row in alone.items():
        other = together[video]
        assert row["views"] == other["views"] == "9"
        for name, value in row.items():
            if name.startswith("score:") and value:
                # 9 digits are written; sums of a video's views are in float64, in the same order.
                assert float(other[name]) == pytest.approx(float(value), rel=0, abs=1e-6)
            else:
                assert other[name] == value
    broken = [row for row in alone.values() if row["error"]]
    assert len(broken) == 1
    assert "broken.mp4" in broken[0]["error"]
    assert broken[0]["right"] == "0"
    found = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("one", "two")]
    assert found[0]["top1"] == found[1]["top1"]
    assert found[0]["videos"] == 7
    assert len(found[0]["broken_videos"]) == 1
    assert not list((tmp_path / "two").glob("*_1"))
    assert (tmp_path / "one" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_one_central_view_repeats_the_test_of_training(
    command, tiny_run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = command("eval.py", f"checkpoint={tiny_checkpoint}", "data.num_workers=0", f"output={tmp_path}/e")
    assert done.code == 0, done.err
    before, after = read_scores(tiny_run), read_scores(tmp_path / "e")
    assert before.keys() == after.keys()
    for video, row in before.items():
        for name, value in row.items():
            if name.startswith("score:"):
                assert float(after[video][name]) == pytest.approx(float(value), abs=1e-6)
    about = json.loads((tmp_path / "e" / "results.json").read_text())
    assert about["network"] == "dtf_tiny"
    assert about["top1"] == json.loads((tiny_run / "results.json").read_text())["top1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no checkpoint: add checkpoint=PATH"),
        (["checkpoint=/no/such.ckpt"], "there is no checkpoint /no/such.ckpt"),
        (["checkpoint={tmp}"], "is a folder"),
        (["checkpoint={good}", "data.clip_length=8"], "takes clips of 4 frames, data.clip_length=8"),
        (["checkpoint={good}", "view=3x3"], "there is no setting view; did you mean views?"),
        (["checkpoint={good}", "views=3x2"], "views must be CLIPSxCROPS"),
        (["checkpoint={good}", "data=folder"], "data.root has no value yet"),
        (["checkpoint={good}", "data=flder"], "there is no data=flder; did you mean folder?"),
        (["checkpoint={other}"], "cannot rebuild 'c2d_tiny' from it"),
        (
            ["checkpoint={good}", "data=folder", "data.root={classes}"],
            "it knows 10 classes, data=folder has 2",
        ),
    ],
)
def test_a_wrong_input_is_one_line(
    command, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["dtf"]["model"]["name"] = "c2d_tiny"
    del (
        content["dtf"]["model"]["arguments"]["kernel_size"],
        content["dtf"]["model"]["arguments"]["filter_groups"],
    )
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    for name in ("one", "two"):
        target = tmp_path / "classes" / "train" / name
        target.mkdir(parents=True)
        (target / "x.mp4").write_text("")
    places = {"good": tiny_checkpoint, "tmp": tmp_path, "other": other, "classes": tmp_path / "classes"}
    given = [a.format(**places) for a in arguments]
    done = command("eval.py", *given, f"output={tmp_path}/e")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err


def test_too_many_broken_videos_fail(
    command, tiny_checkpoint: Path, odd_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"checkpoint={tiny_checkpoint}",
        "data=folder",
        f"data.root={odd_tree}",
        "data.num_workers=0",
    ]
    done = command("eval.py", *arguments, f"output={tmp_path}/e")
    assert done.code == 1
    assert "test: 1 of 7 videos are broken" in done.err
    assert "broken.mp4" in done.err
    assert "scores of 6 of 7 videos are kept; the same command with output=" in done.err
    found = json.loads((tmp_path / "e" / "results.json").read_text())
    assert found["videos"] == 7
    assert len(found["broken_videos"]) == 1
    assert found["refused"].startswith("test: 1 of 7 videos are broken")
    assert len(read_scores(tmp_path / "e")) == 7
    assert "1 of 7 videos are broken" in (tmp_path / "e" / "report.html").read_text("utf-8")

    # Repaired (here: allowed), only that video is read again.
    seen = count_videos(monkeypatch)
    done = command("eval.py", *arguments, "data.max_bad_fraction=0.2", f"output={tmp_path}/e")
    assert done.code == 0, done.err
    assert len(seen) == 1
    again = json.loads((tmp_path / "e" / "results.json").read_text())
    assert again == found | {"refused": None}
    assert not (tmp_path / "e" / "scores").exists()


def count_videos(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Takes the numbers of the videos that are evaluated from now on in this process."""
    seen: list[int] = []
    add = VideoScores.add

    def counted(self: VideoScores, *args: Any) -> None:
        seen.extend(sorted(set(args[2].tolist())))
        add(self, *args)

    monkeypatch.setattr(VideoScores, "add", counted)
    return seen


def test_what_was_cut_off_goes_on(
    command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 videos in batches of 4: Ctrl-C after 2 of them, a kill after 2 more, the last write torn."""
    common = [f"checkpoint={tiny_checkpoint}", "data.num_workers=0", "data.batch_size=4", "trainer=cpu"]
    whole = command("eval.py", *common, f"output={tmp_path}/whole")
    assert whole.code == 0, whole.err

    broken = [*common, f"output={tmp_path}/broken"]
    handler = signal.getsignal(signal.SIGINT)
    stop = "+callbacks.stop={_target_:engine.SignalAtStep,signal:SIGINT,step:2,where:test}"
    done = command("eval.py", *broken, stop)
    assert done.code == 130
    assert done.err.splitlines()[-1] == (
        "stopped by SIGINT; scores of 8 of 20 videos are kept; the same command with "
        f"output={tmp_path}/broken goes on with the others"
    )
    assert signal.getsignal(signal.SIGINT) == handler
    kill = "+callbacks.stop={_target_:engine.SignalAtStep,signal:SIGKILL,step:2,where:test}"
    done = run_subprocess("eval.py", *broken, kill, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY}/tests")
    assert done.code == -signal.SIGKILL, done.err
    assert not (tmp_path / "broken" / "results.json").exists()
    _, kept = sorted((tmp_path / "broken" / "scores").glob("*.bin"))
    kept.write_bytes(kept.read_bytes()[:-7])

    # Another evaluation does not mix with it, and changes nothing.
    before = (tmp_path / "broken" / "config.yaml").read_bytes()
    done = command("eval.py", *broken, "views=2x1")
    assert done.code == 1
    assert "keeps scores of another evaluation: views was '1x1', is '2x1'. Choose another folder" in done.err
    assert done.err.count("\n") == 1
    assert (tmp_path / "broken" / "config.yaml").read_bytes() == before

    seen = count_videos(monkeypatch)
    done = command("eval.py", *broken)
    assert done.code == 0, done.err
    assert seen == list(range(12, 20)), "the batch that was cut short is read again"
    scores, results = (
        [(tmp_path / folder / name).read_text() for folder in ("whole", "broken")]
        for name in ("scores.csv", "results.json")
    )
    assert scores[0] == scores[1]
    assert results[0] == results[1]
    assert not (tmp_path / "broken" / "scores").exists()


def test_all_scores_are_there(
    command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off when everything was evaluated, and no page written."""
    common = [f"checkpoint={tiny_checkpoint}", "data.num_workers=0", "trainer=cpu", f"output={tmp_path}/e"]
    with monkeypatch.context() as patch:
        patch.setattr("dtf.lit.kept_scores.KeptScores.remove", lambda self: None)
        assert command("eval.py", *common).code == 0
    results = (tmp_path / "e" / "results.json").read_text()
    seen = count_videos(monkeypatch)
    done = command("eval.py", *common)
    assert done.code == 0, done.err
    assert seen == []
    assert (tmp_path / "e" / "results.json").read_text() == results
    assert "Total length" not in done.err


def test_a_training_is_not_evaluated_into_its_own_folder(
    command, tiny_run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in sorted(tiny_run.rglob("*"))}
    done = command("eval.py", f"checkpoint={tiny_checkpoint}", f"output={tiny_run}")
    assert done.code == 1
    assert f"output={tiny_run} is the folder of a training" in done.err
    assert {path: path.stat().st_mtime_ns for path in sorted(tiny_run.rglob("*"))} == files
    # One that has not come to its first checkpoint.
    (tmp_path / "config.yaml").write_bytes((tiny_run / "config.yaml").read_bytes())
    done = command("eval.py", f"checkpoint={tiny_checkpoint}", f"output={tmp_path}")
    assert "is the folder of a training" in done.err


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `tiny_checkpoint` in all formats."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported")
    export(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def exported_data(tiny_run: Path) -> list[str]:
    """The data of `tiny_run`: an exported file says nothing of where it was trained."""
    root = json.loads((tiny_run / "results.json").read_text())["config"]["data"]["root"]
    return [f"data.root={root}", "data.clips_per_class={train:2,val:1,test:2}", "data.num_workers=0"]


@pytest.mark.parametrize(
    "arguments", [["model.safetensors"], ["model.onnx"], ["model.pt2", "trust=true"]], ids=lambda a: a[0]
)
def test_what_is_deployed_is_evaluated(
    command, exported: Path, tiny_run: Path, exported_data: list[str], tmp_path: Path, arguments: list[str]
) -> None:
    """Weights and graphs have the scores of the test of training, without its checkpoint."""
    given = [f"checkpoint={exported}/{arguments[0]}", *arguments[1:], *exported_data, "trainer=cpu"]
    done = command("eval.py", *given, f"output={tmp_path}/e")
    assert done.code == 0, done.err
    before, after = read_scores(tiny_run), read_scores(tmp_path / "e")
    assert before.keys() == after.keys()
    for video, row in before.items():
        for column, value in row.items():
            if column.startswith("score:"):
                assert float(after[video][column]) == pytest.approx(float(value), abs=1e-5)
    found = json.loads((tmp_path / "e" / "results.json").read_text())
    assert found["network"] == "dtf_tiny"
    assert found["top1"] == json.loads((tiny_run / "results.json").read_text())["top1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.pt2"], "can run code that it contains: add trust=true"),
        (["none.onnx"], "there is no file"),
        (["text.onnx"], "is not opened as an ONNX graph"),
        (["text.pt2"], "does not say what it was trained on"),
        (["model.onnx", "data.crop_px=16"], "takes data.crop_px=32 only, data.crop_px=16: leave"),
        (["model.onnx", "data.mean=[0,0,0]"], "data.mean=(0, 0, 0): leave that setting out"),
        (["model.onnx", "trainer.precision=bf16-mixed"], "an exported graph has its own"),
    ],
)
def test_exported_files_that_cannot_be_evaluated(
    command, exported: Path, exported_data: list[str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    for suffix in ("onnx", "pt2"):
        (exported / f"text.{suffix}").write_text("text")
    given = [f"checkpoint={exported}/{arguments[0]}", *exported_data, "trainer=cpu", *arguments[1:]]
    done = command("eval.py", *given, f"output={tmp_path}/e")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err


# ---- settings from a checkpoint: tests/lit/test_description.py -------------------------------------------


def test_the_data_set_comes_from_the_checkpoint(tiny_checkpoint: Path) -> None:
    arguments = [f"checkpoint={tiny_checkpoint}"]
    assert choose_data(arguments, read_data) == [*arguments, "data=motion"]
    assert choose_data([*arguments, "data=folder"], read_data) == [*arguments, "data=folder"]


def test_data_sets_of_ones_own_are_looked_up_by_hydra() -> None:
    """Where the command line has a folder of settings; a name that is none of a file's has no way in."""
    here = ["checkpoint=x.ckpt", "trainer=cpu"]
    own = [
        [*here, "--config-dir=conf"],
        ["--config-dir", "conf", *here],
        [*here, "hydra.searchpath=[file://c]"],
    ]
    for arguments in own:
        found = choose_data(arguments, lambda path: {"name": "my-data"})
        assert sorted(found) == sorted([*arguments, "data=my-data"])
    for arguments, name in [(here, "my-data"), *((given, "../a,b") for given in own)]:
        with pytest.raises(ValueError, match=r"was trained on data set .*, unknown here: add data=\.\.\. \("):
            choose_data(arguments, lambda path, name=name: {"name": name})
