"""Sliding windows: which there are, what each sees, and that a long video is read once and not kept."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dtf.apply.sliding import clip_seconds, read_windows, slide
from dtf.data.dataset import read_views
from dtf.data.decode import VideoError, VideoReader
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TestTransform

FPS = 10
NUM_FRAMES = 95


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9.5 seconds of noise, with B-frames and a key frame every 20 frames."""
    path = tmp_path_factory.mktemp("sliding") / "noise.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"bf": "2", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("window", "stride", "starts", "last"),
    [
        (2.0, 1.0, [0, 1, 2, 3, 4, 5, 6, 7, 7.5], (7.5, 9.5, 75, 95)),
        (2.0, 2.5, [0, 2.5, 5, 7.5], (7.5, 9.5, 75, 95)),
        (2.0, 4.0, [0, 4, 7.5], (7.5, 9.5, 75, 95)),
        (9.5, 1.0, [0], (0, 9.5, 0, 95)),
        (60.0, 1.0, [0], (0, 9.5, 0, 95)),
        (0.04, 9.46, [0, 9.46], (9.46, 9.5, 94, 95)),
    ],
)
def test_windows_cover_the_video(video, window, stride, starts, last):
    with VideoReader(video) as reader:
        windows = slide(reader, window, stride)
    assert [w.start for w in windows] == pytest.approx(starts)
    found = windows[-1]
    assert (found.start, found.end, found.first, found.stop) == pytest.approx(last)
    assert all(0 <= w.first < w.stop <= NUM_FRAMES for w in windows)
    if stride <= window:
        assert {f for w in windows for f in range(w.first, w.stop)} == set(range(NUM_FRAMES))


def test_a_stride_of_less_than_a_frame_is_one_frame(video):
    with VideoReader(video) as reader:
        assert len(slide(reader, 2.0, 1e-9)) == 76


@pytest.mark.parametrize("scheme", ["dense", "segment"])
@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (2, 3)])
def test_each_window_sees_what_it_would_see_alone(video, scheme, clips, crops):
    sampler = FrameSampler(4, frame_stride=3, scheme=scheme)
    transform = TestTransform(crop_px=24, short_side_px=32, num_crops=crops)
    with VideoReader(video) as reader:
        windows = slide(reader, 2.0, 0.5)
        found = dict(read_windows(reader, windows, sampler, transform, clips))
        assert sorted(found) == list(range(len(windows)))
        for w, window in enumerate(windows):
            indices = window.first + sampler.test(window.stop - window.first, reader.fps, clips)
            alone = read_views(reader, indices, transform.crops, crops, 24)
            assert torch.equal(found[w], alone)


def test_frames_are_decoded_once_and_windows_come_as_they_end(video, monkeypatch):
    converted = []
    to_array = VideoReader._to_array
    monkeypatch.setattr(
        VideoReader, "_to_array", lambda self, f: converted.append(f.pts) or to_array(self, f)
    )
    sampler, transform = FrameSampler(4, scheme="segment"), TestTransform(crop_px=32)
    with VideoReader(video) as reader:
        windows = slide(reader, 2.0, 0.2)
        so_far = [(w, len(converted)) for w, _ in read_windows(reader, windows, sampler, transform)]
        assert reader.errors == reader.filled == 0
    assert len(converted) == len(set(converted)), "a frame was decoded twice"
    # When a window is handed out nothing behind its end was converted.
    assert all(count <= windows[w].stop for w, count in so_far)
    assert [w for w, _ in so_far] == list(range(len(windows)))


def test_a_long_file_is_read_in_few_pieces(video, monkeypatch):
    """Without packets in memory every gap between wanted frames would be another seek."""
    sampler, transform = FrameSampler(2, scheme="segment"), TestTransform(crop_px=32)
    pieces = []
    seek = VideoReader._seek_packets
    monkeypatch.setattr(
        VideoReader, "_seek_packets", lambda self, a, b: pieces.append((a, b)) or seek(self, a, b)
    )
    with VideoReader(video, packet_cap_bytes=0) as reader:
        windows = slide(reader, 0.2, 2.0)
        found = dict(read_windows(reader, windows, sampler, transform))
    assert len(found) == len(windows)
    assert len(pieces) == 1


def test_a_lost_frame_is_replaced_by_the_next(video, monkeypatch):
    decode = VideoReader._decode_range

    def losing(self, *args):
        yield from (frame for frame in decode(self, *args) if self._index_of(frame.pts) not in (30, 31, 94))

    with VideoReader(video) as reader:
        whole = dict(reader.iter_frames(range(NUM_FRAMES)))
        monkeypatch.setattr(VideoReader, "_decode_range", losing)
        found = list(reader.iter_forward(range(20, NUM_FRAMES)))
        assert [index for index, _ in found] == list(range(20, NUM_FRAMES))
        assert reader.filled == 3
        for index, frame in found:
            np.testing.assert_array_equal(frame, whole[{30: 32, 31: 32, 94: 93}.get(index, index)])
        monkeypatch.setattr(VideoReader, "_decode_range", lambda self, *args: iter(()))
        with pytest.raises(VideoError, match="no frame could be decoded"):
            list(reader.iter_forward([1, 2]))


def test_what_a_clip_spans():
    assert clip_seconds(FrameSampler(16, 4), fps=32) == 2
    assert clip_seconds(FrameSampler(16, 4, target_fps=16), fps=32) == 4
    assert clip_seconds(FrameSampler(16, 4, scheme="uniform"), fps=32) == 0
