"""report.html: complete, self-contained, harmless whatever the files say, made again from a run's folder."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from engine import documented
from PIL import Image

from dtf import report
from dtf.data.h264 import write_h264
from dtf.files import write_json
from dtf.lit.tasks.classification import Classification, Evaluation, results, write_scores
from dtf.runs.reading import Video, read_curves
from dtf.view import pictures
from dtf.view.figures import new_figure
from dtf.view.report.curves import thin
from dtf.view.report.videos import VIDEOS_SHOWN, choose_videos

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page; its elements must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.links: list[str] = []
        self.alts: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if tag == "img" and name == "alt":
                assert len(value) > 20
                self.alts.append(value)
            if tag == "img" and name == "src":
                kind, _, content = value.partition(";base64,")
                picture = base64.b64decode(content, validate=True)
                if kind == "data:image/svg+xml":
                    ET.fromstring(picture)
                else:
                    assert kind in ("data:image/png", "data:image/jpeg")
                    Image.open(io.BytesIO(picture)).load()
                self.pictures.append(picture)
            elif name in ("href", "src"):
                self.links.append(value)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def check_self_contained(page: Page) -> None:
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert all(link.startswith("#") and f'id="{link[1:]}"' in page.source for link in page.links)
    # Before any content: it forbids scripts, and whatever lies elsewhere.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    assert page.source.index(meta) < page.source.index("<title>")
    assert not re.search(r"url\(|@import", page.source)
    assert len(page.source) < 2_000_000


def test_train_leaves_a_page_and_it_is_made_again(tiny_run: Path, capsys) -> None:
    first = Page(tiny_run / "report.html")
    check_self_contained(first)
    found = json.loads((tiny_run / "results.json").read_text())
    for expected in (
        "dtf_tiny on motion",
        f"{found['top1']:.2%}",
        "bright_then_dark",
        "python train.py ",
        "clip_length: 4",
        "norms, biases, scales",
        "1 x CPU",
    ):
        assert expected in first.text, expected
    for heading in ("Curves", "Confusions", "Classes", "Videos", "Temporal filters", "How to repeat it"):
        assert heading in first.text
    # Curves, a matrix, filters, and frames of right and wrong videos.
    assert sum(p.startswith(b"\xff\xd8") for p in first.pictures) >= 6
    assert sum(b"<svg" in p[:400] for p in first.pictures) >= 7
    assert sum(p.startswith(b"\x89PNG") for p in first.pictures) == 2
    assert "no frames" not in first.text

    (tiny_run / "report.html").unlink()
    command = [
        str(tiny_run) if word == "OUTPUT" else word for word in documented("dashboards.md", "dtf.report")
    ]
    assert command[:2] == ["-m", "dtf.report"]
    assert report.main([*command[2:], "frames=true"]) == 0
    assert capsys.readouterr().out.strip() == str(tiny_run / "report.html")
    assert Page(tiny_run / "report.html").text == first.text


def test_eval_leaves_a_page(command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = command(
        "eval.py", f"checkpoint={tiny_checkpoint}", "views=2x1", f"output={tmp_path}", "trainer=cpu"
    )
    assert done.code == 0, done.err
    page = Page(tmp_path / "report.html")
    check_self_contained(page)
    assert str(tiny_checkpoint) in page.text
    assert "2x1" in page.text
    assert "python eval.py " in page.text
    assert "Curves" not in page.text
    assert sum(p.startswith(b"\xff\xd8") for p in page.pictures) >= 6


def evaluated(folder: Path, names: list[str], paths: list[str], label, scores, errors=None) -> None:
    """The files of a result in a run's folder."""
    index = np.arange(len(paths))
    found = Evaluation(index, np.array(label), np.array(scores, float), np.ones_like(index), errors or {})
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder / "scores.csv", found, names, paths)
    write_json(folder / "results.json", results(found, names, paths) | {"split": "test"})


EVIL = "<script>alert(1)</script>"
CLIP = (
    "data: {clip_length: 4, frame_stride: 1, crop_px: 32, short_side_px: 32, mean: [0, 0, 0], std: [1, 1, 1]"
)


def test_nothing_in_the_files_becomes_markup(tmp_path: Path) -> None:
    root = tmp_path / EVIL
    root.mkdir(parents=True)
    good = root / "<img src=x onerror=alert(1)>.mp4"
    write_h264(good, np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8))
    broken = root / "broken.mp4"
    broken.write_text("no video")
    names = [EVIL, '"><svg onload=alert(2)>', "tab\tand\x1b[31m colour", "$x_{$ odd \udcff"]
    paths = [str(good), str(broken), str(tmp_path / "gone.mp4"), f"{EVIL}.mp4"]
    scores = [[0.7, 0.3, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0.1, 0.9], [np.nan] * 4]
    run = tmp_path / "run"
    evaluated(run, names, paths, [0, 0, 3, 2], scores, {3: f"{EVIL}.mp4: is empty {EVIL}"})
    (run / "config.yaml").write_text(CLIP + f", root: '{root}'}}\nmodel: {{name: '{EVIL}'}}\n")
    (run / "broken_videos.txt").write_text(f"{EVIL}: reason\n")
    (run / "filters.json").write_text(json.dumps({f"{EVIL}$": [1.0, 2.0], "other": [0.0, 0.0, 0.0]}))
    about = {"command": f"python train.py {EVIL}", "git": {"commit": EVIL, "dirty": True}, "device": EVIL}
    group = {"name": EVIL, "tensors": 1, "numbers": 2, "lr": 0.1, "weight_decay": 0.0}
    write_json(run / "about.json", about | {"versions": {EVIL: EVIL}, "parameter_groups": [group]})
    (run / "csv" / "version_0").mkdir(parents=True)
    (run / "csv" / "version_0" / "metrics.csv").write_text(f"epoch,step,{EVIL}\n0,4,1.5\n0,9,1.0\n")
    page = Page(report.write_report(run))
    check_self_contained(page)
    assert "svg" not in page.tags
    assert page.text.count(EVIL) >= 12
    assert "\x1b" not in page.source
    # A video that is broken by now, and one that is gone, have a line in place of their frames.
    assert "broken.mp4" in page.text
    assert page.text.count("no frames: ") == 2
    assert "does not lie below data.root=" in page.text
    assert [p[:2] for p in page.pictures].count(b"\xff\xd8") == 1


@pytest.mark.slow
def test_hundreds_of_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [
        f"{word} of class {i}" for i, word in enumerate(["playing", "<b>throwing", "riding", "washing"] * 100)
    ]
    label = np.arange(2000) % 400
    scores = generator.random((2000, 400)) / 400
    prediction = np.where(generator.random(2000) < 0.6, label, (label * 7 + 3) % 400)
    scores[np.arange(2000), prediction] += 0.5
    (tmp_path / "config.yaml").write_text("data: {}")
    evaluated(tmp_path, names, [f"{i}.mp4" for i in range(2000)], label, scores)
    page = Page(report.write_report(tmp_path))
    check_self_contained(page)
    assert all(name in page.text for name in names)
    # On a phone: what is wide scrolls in a box of its own; in the dark, what is drawn turns dark.
    wide = page.source.count('<div class="scroll"><img class="drawn"') + page.source.count(
        '<div class="scroll"><table>'
    )
    assert wide == 3
    assert "@media (prefers-color-scheme: dark)" in page.source
    assert "all 400 classes" in page.text
    whole, part = (Image.open(io.BytesIO(p)) for p in page.pictures if p.startswith(b"\x89PNG"))
    assert whole.size < (800, 800)
    assert 900 < part.size[0] < 1400
    # No settings tell how to read frames here.
    assert "no frames: " in page.text


def write_curves(folder: Path, version: int, *lines: str) -> None:
    path = folder / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train/loss,train/loss_epoch,val/top1\n" + "\n".join(lines) + "\n")


def test_curves_of_a_resumed_run_are_one(tmp_path: Path) -> None:
    # Ten steps an epoch. Cut off in the second epoch, whose part is done again; the last line is torn.
    write_curves(
        tmp_path, 0, "0,4,9,,", "0,9,8,,", "0,9,,,0.1", "0,9,,8.5,", "1,14,7,,", "1,19,6.9,,", "1,19,6"
    )
    write_curves(tmp_path, 1, "1,14,7,,", "1,19,6,,", "1,19,,,0.2", "1,19,,6.5,")
    write_curves(tmp_path, 10, "2,24,5,,", "2,29,4,,", "2,29,,,0.3", "2,29,,4.5,")
    write_curves(tmp_path, 2, "2,24,77,,", "2,29,77,,")
    (tmp_path / "version_x").mkdir()
    curves = read_curves(tmp_path)
    assert curves["train/loss"].y.tolist() == [9, 8, 7, 6, 5, 4]
    assert curves["train/loss"].x.tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
    assert curves["val/top1"].x.tolist() == [1, 2, 3]
    assert curves["val/top1"].y.tolist() == [0.1, 0.2, 0.3]


def test_long_curves_are_thinned() -> None:
    x, y = thin(np.arange(10_000.0), np.tile([0.0, 2.0], 5000), points=100)
    assert len(x) == len(y) == 100
    assert np.allclose(y, 1)
    assert x[0] == 49.5


def test_an_unfinished_run_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: dtf_tiny}\ndata: {name: motion}\n")
    write_curves(tmp_path / "csv", 0, "0,4,9,,", "0,9,8,,")
    page = Page(report.write_report(tmp_path))
    assert "not finished" in page.text
    assert len(page.pictures) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("scores.csv", "video,class\na,b\n"),
        ("scores.csv", "video,class,prediction,error,score:up\na,up,down,,1\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, capsys, name: str, content: str) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name} is damaged: ")
    assert error.count("\n") == 1


def test_a_folder_without_a_run(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err
    assert report.main([]) == 2
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report.main(["frames=true"])
    assert "no folder of a run" in capsys.readouterr().err


def test_videos_shown_are_of_many_classes() -> None:
    def video(i: int, label: str, prediction: str) -> Video:
        return Video(f"{i}.mp4", label, prediction, 0.9 - 0.01 * i, "")

    videos = [video(i, "a", "a") for i in range(10)] + [video(20, "b", "b"), video(30, "c", "a")]
    videos += [Video("broken.mp4", "c", "", 0.0, "is empty")]
    assert [v.path for v in choose_videos(videos, True)][:3] == ["0.mp4", "20.mp4", "1.mp4"]
    assert len(choose_videos(videos, True)) == VIDEOS_SHOWN
    assert [v.path for v in choose_videos(videos, False)] == ["30.mp4"]


def test_pictures_say_what_they_show(tmp_path: Path) -> None:
    names = ["up", "down", "left"]
    scores = np.eye(3)[[0, 0, 2, 1]]
    evaluated(tmp_path, names, [f"/{i}.mp4" for i in range(4)], [0, 1, 2, 1], scores)
    write_curves(tmp_path / "csv", 0, "0,4,9,,", "0,9,8,,", "0,9,,,0.1", "0,9,,8.5,")
    (tmp_path / "filters.json").write_text(json.dumps({"layer1": [1.0, 3.0], "layer2": [0.0, 0.0]}))
    alts = Page(report.write_report(tmp_path)).alts
    assert alts == [
        "Curve of loss, up to epoch 1: training, each step: from 9 to 8, between 8 and 9; "
        "training: from 8.5 to 8.5, between 8.5 and 8.5.",
        "Curve of top-1, up to epoch 1: validation: from 10.0% to 10.0%, between 10.0% and 10.0%.",
        "Confusion matrix of 3 classes: 3 of 4 videos are right; most confused: down taken for up: 1.",
        "Temporal filters of 2 blocks: share of the energy that each adds over frequencies, and its "
        "amplitude, the largest 2 in layer1.",
    ]


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000  # Python 3.13 reads some ten thousand levels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("about.json", '{"parameters": Infinity}'),
        ("about.json", '{"parameters": 1e999}'),
        ("about.json", DEEP),
        ("results.json", '{"top1": NaN}'),
        ("results.json", b"\xff\xfe\x00"),
        ("filters.json", "[" * 5000),
        ("config.yaml", "a: &a [1]\nb: [*a, *a]"),
        ("config.yaml", "[" * 5000),
        ("scores.csv", b"\x00\xff,\x1b"),
        ("scores.csv", "video,class,prediction,error,score:a\nv,a,a,,nan\n"),
        ("scores.csv", "video,class,prediction,error,score:a\n" + "v" * (1 << 18) + ",a,a,,1\n"),
        ("scores.csv", b"v" * (1 << 23)),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, capsys, name: str, content) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name} is damaged: ")
    assert error.count("\n") == 1
    assert len(error) < 500
    assert "\x1b" not in error


@pytest.mark.parametrize("name", ["results.json", "scores.csv", "csv/version_0/metrics.csv"])
@pytest.mark.parametrize("kind", ["link", "pipe", "giant"])
def test_a_folder_is_not_left_and_nothing_is_waited_for(tmp_path: Path, capsys, name: str, kind: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "secret"
    path = run / name
    path.parent.mkdir(parents=True)
    (run / "config.yaml").write_text("data: {}")
    outside.write_text('{"secret": 1}')
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(SystemExit):
        report.main([str(run)])
    reasons = {"link": "leads out", "pipe": "not a regular file", "giant": "MiB"}
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is damaged: ")
    assert reasons[kind] in error


PIXEL = pictures.to_png(new_figure(1, 1), 1)
WRONG = [None, 1, -1, "text", [], [1], {}, {"a": 1}, [{}], 1e300, True]


@pytest.mark.parametrize("wrong", WRONG, ids=[json.dumps(value) for value in WRONG])
def test_wrong_types_cost_their_section_only(tmp_path: Path, monkeypatch, wrong) -> None:
    monkeypatch.setattr(pictures, "to_png", lambda figure, dpi: PIXEL)
    evaluated(tmp_path, ["a", "b"], ["/v.mp4", "/w.mp4"], [0, 1], [[1, 0], [1, 0]])
    sound = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "filters.json").write_text(json.dumps({"a": wrong}))
    (tmp_path / "config.yaml").write_text(json.dumps({"data": wrong, "model": wrong}))
    keys = ("command", "git", "versions", "device", "parameters", "parameter_groups", "network")
    (tmp_path / "about.json").write_text(json.dumps(dict.fromkeys(keys, wrong)))
    for broken in ({key: wrong} for key in sound):
        (tmp_path / "results.json").write_text(json.dumps(sound | broken))
        page = Page(report.write_report(tmp_path))
        check_self_contained(page)
        assert "How to repeat it" in page.text


def test_numbers_that_no_axis_shows(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}")
    lines = [
        "0,4,1e308,,",
        "0,9,inf,,",
        "0,14,nan,,",
        "-1,-1,1,,",
        f"0,{'9' * 30},1,,",
        "0,19,2,,0.5",
        "0,19,,nan,",
        "4,99,,9,",
    ]
    write_curves(tmp_path / "csv", 0, *lines)
    page = Page(report.write_report(tmp_path))
    assert page.alts[0].startswith("Curve of loss, up to epoch 5: training, each step: from 2 to 2")


def test_a_time_limit_that_is_none_is_one_line(tmp_path: Path) -> None:
    write_h264(tmp_path / "a.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    run = tmp_path / "run"
    evaluated(run, ["a", "b"], [str(tmp_path / "a.mp4")], [0], [[1, 0]])
    for limit in ("soon", "[1]", ".nan", "-1"):
        (run / "config.yaml").write_text(CLIP + f", root: '{tmp_path}', max_read_seconds: {limit}}}\n")
        assert report.main([str(run), "frames=true"]) == 0
        assert "the settings of the data do not tell how to read them" in Page(run / "report.html").text


def test_frames_are_of_the_data_folder_or_of_none(tmp_path: Path, capsys) -> None:
    write_h264(tmp_path / "a.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    run = tmp_path / "run"
    evaluated(run, ["a", "b"], [str(tmp_path / "a.mp4")], [0], [[1, 0]])
    for root, arguments, reason in (
        (tmp_path, ["frames=true"], None),
        (os.path.relpath(tmp_path), ["frames=true"], None),
        (tmp_path / "data", ["frames=true"], "does not lie below data.root"),
        (tmp_path, [], "frames=true shows those of a run of your own"),
    ):
        (run / "config.yaml").write_text(CLIP + f", root: '{root}'}}\n")
        assert report.main([str(run), *arguments]) == 0
        page = Page(run / "report.html")
        assert any(picture.startswith(b"\xff\xd8") for picture in page.pictures) == (reason is None)
        assert reason is None or reason in page.text
        assert (str(tmp_path / "a.mp4") in page.text) == (root == tmp_path / "data")
    capsys.readouterr()


def test_a_result_from_before_there_were_tasks_has_the_same_page(tmp_path: Path) -> None:
    pages = []
    for more in ({}, {"task": Classification.description()}):
        (tmp_path / "config.yaml").write_text("data: {}")
        evaluated(tmp_path, ["up", "down"], ["a.mp4", "b.mp4"], [0, 1], [[0.7, 0.3], [0.6, 0.4]])
        path = tmp_path / "results.json"
        write_json(path, json.loads(path.read_text()) | more)
        os.utime(path, (1e9, 1e9))
        (tmp_path / "csv" / "version_0").mkdir(parents=True, exist_ok=True)
        curves = "epoch,step,train/loss_epoch,train/top1,val/top1,val/top5\n0,4,0.5,0.25,0.5,1\n"
        (tmp_path / "csv" / "version_0" / "metrics.csv").write_text(curves)
        # Pictures of curves hold the time at which they were drawn.
        pages.append(re.sub(r"svg\+xml;base64,[^\"]*", "", report.write_report(tmp_path).read_text()))
    assert pages[0] == pages[1]
    for text in (
        "50.00%</b><span>top-1",
        "100.00%</b><span>top-5",
        "Curve of top-1, up to epoch 1: training",
    ):
        assert text in pages[0]
