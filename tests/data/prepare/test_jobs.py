"""One video: looked at, or copied smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from video_files import numbers_of, write_video

from dtf.data.decode import VideoReader
from dtf.data.prepare.jobs import Encoding, Probe, Resize, probe, resize


def test_probe_says_what_a_video_is(tmp_path, video_case):
    turned = write_video(tmp_path / "turned.mp4", 9, rotation=90, fps=25)
    expected = {"frames": 9, "fps": 25.0, "width": 48, "height": 64, "rotation": 90, "damaged": 0}
    assert probe(Probe(str(turned))) == probe(Probe(str(turned), full=True)) == expected
    whole = video_case("h264_b_frames.mp4").read_bytes()
    spoiled = bytearray(whole)
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    spoiled[middle : middle + 60] = b"\xa5" * 60
    (tmp_path / "spoiled.mp4").write_bytes(spoiled)
    assert probe(Probe(str(tmp_path / "spoiled.mp4"), full=True))["frames"] == 40
    assert "error" in probe(Probe(str(tmp_path / "nowhere.mp4")))


@pytest.mark.parametrize(
    "name",
    [
        "h264_b_frames.mp4",
        "variable_rate.mp4",
        "vp9.webm",
        "h264.avi",
        "late_start.mkv",
        "h264_yuv444_odd_size.mp4",
    ],
)
def test_a_copy_has_the_same_frames_at_the_same_times(tmp_path, video_case, name):
    source = video_case(name)
    record = resize(Resize(str(source), str(tmp_path / "copy"), Encoding(24, keyframe_distance=7)))
    assert record["ending"] == ".mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mp4"]
    with VideoReader(source) as before, VideoReader(tmp_path / "copy.mp4") as after:
        assert (record["frames"], record["height"]) == (before.num_frames, 24)
        assert record["width"] % 2 == record["height"] % 2 == 0
        everything = range(before.num_frames)
        assert numbers_of(after.read(everything).permute(0, 2, 3, 1).numpy()) == numbers_of(
            before.read(everything).permute(0, 2, 3, 1).numpy()
        )
        assert np.abs(before.frame_seconds - after.frame_seconds).max() < 1e-4
        assert abs(before.fps - after.fps) < 0.01


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_copy_is_upright(tmp_path, rotation):
    source = write_video(tmp_path / "in.mp4", [1, 2, 4], size=(96, 64), rotation=rotation)
    record = resize(Resize(str(source), str(tmp_path / "out"), Encoding(32)))
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        first, second = (reader.read([2]).float() for reader in (before, after))
    assert record["rotation"] == 0
    small = torch.nn.functional.interpolate(first, tuple(second.shape[2:]), mode="bilinear", antialias=True)
    assert (small - second).abs().mean() < 12


def test_a_copy_keeps_colours_and_skips_small_videos(tmp_path, real_videos):
    source = next(path for path in real_videos if path.name == "carphone_pristine.mp4")  # 176 x 144
    record = resize(Resize(str(source), str(tmp_path / "small"), Encoding(72, crf=12)))
    with VideoReader(source) as before, VideoReader(tmp_path / "small.mp4") as after:
        wanted = [0, 60, 119]
        first, second = before.read(wanted).float(), after.read(wanted).float()
    assert record["width"] == 88
    # By way of RGB, the mean of green would be off by more than 1.
    assert (first.mean((0, 2, 3)) - second.mean((0, 2, 3))).abs().max() < 0.7
    record = resize(Resize(str(source), str(tmp_path / "same"), Encoding(256)))
    assert (tmp_path / "same.mp4").read_bytes() == source.read_bytes()
    assert record["ending"] == ".mp4"
    webm = write_video(tmp_path / "tiny.webm", 6, codec="libvpx-vp9")
    assert resize(Resize(str(webm), str(tmp_path / "tiny_copy"), Encoding(256)))["ending"] == ".webm"


def test_a_broken_video_leaves_nothing_behind(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    record = resize(Resize(str(tmp_path / "broken.mp4"), str(tmp_path / "out" / "copy"), Encoding(24)))
    assert "cannot be opened" in record["error"]
    assert list((tmp_path / "out").iterdir()) == []
