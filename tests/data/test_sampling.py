"""Frame choice: exact numbers for every scheme, and their properties over many lengths."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import GOLDEN, stored

from dtf.data.sampling import FrameSampler, dense_starts, parse_views, segment_indices


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_dense_test_clips_by_hand():
    """N = 100, window 8 * 4 = 32, so starts lie in 0..68."""
    sampler = FrameSampler(8, 4)
    assert sampler.test(100, 30.0).tolist() == [list(range(34, 66, 4))]
    starts = sampler.test(100, 30.0, num_clips=3)[:, 0]
    assert starts.tolist() == [0, 34, 68]
    starts = FrameSampler(8, 4, endpoint=False).test(100, 30.0, num_clips=3)[:, 0]
    assert starts.tolist() == [0, 22, 45]  # floor(k * 68 / 3)
    assert dense_starts(300, 64, 10, endpoint=False).tolist() == [k * 236 // 10 for k in range(10)]


def test_dense_training_reaches_every_start_and_nothing_else():
    sampler = FrameSampler(4, 2)
    source = rng()
    clips = np.stack([sampler.train(12, 30.0, source) for _ in range(400)])
    assert (np.diff(clips, axis=1) == 2).all()
    counts = np.bincount(clips[:, 0], minlength=5)
    assert len(counts) == 5  # 12 - 8 = 4 is the last start
    assert counts.min() > 400 / 5 * 0.6


@pytest.mark.parametrize(("short", "expected"), [("loop", [0, 2, 4, 1, 3, 0]), ("clamp", [0, 2, 4, 4, 4, 4])])
def test_dense_short_video(short, expected):
    sampler = FrameSampler(6, 2, short=short)
    assert sampler.train(5, 30.0, rng()).tolist() == expected
    assert sampler.test(5, 30.0, num_clips=2).tolist() == [expected, expected]


def test_dense_window_that_just_does_not_fit():
    """8 frames are missing one to the window of 2 * 4, but its frames 0, 4 exist."""
    assert FrameSampler(2, 4).test(7, 30.0).tolist() == [[0, 4]]


def test_dense_target_fps():
    """At 60 fps a stride of 4 frames at 30 fps is 8 frames, at 15 fps it is 2, at 25 fps 3 1/3."""
    sampler = FrameSampler(4, 4, target_fps=30)
    assert sampler.test(32, 60.0).tolist() == [[0, 8, 16, 24]]
    assert sampler.test(8, 15.0).tolist() == [[0, 2, 4, 6]]
    assert sampler.test(13, 25.0).tolist() == [[0, 3, 6, 10]]
    with pytest.raises(ValueError, match="no frame rate"):
        sampler.test(8, 0.0)


def test_segment_by_hand():
    """10 frames in 4 segments of 2.5: middles 1.25, 3.75, 6.25, 8.75."""
    sampler = FrameSampler(4, scheme="segment")
    assert sampler.test(10, 30.0).tolist() == [[1, 3, 6, 8]]
    # Two clips at a quarter and three quarters of each segment.
    assert sampler.test(16, 30.0, num_clips=2).tolist() == [[1, 5, 9, 13], [3, 7, 11, 15]]


def test_segment_training_stays_in_its_segments_and_reaches_all_frames():
    sampler = FrameSampler(4, scheme="segment")
    source = rng()
    clips = np.stack([sampler.train(12, 30.0, source) for _ in range(300)])
    assert (clips // 3 == np.arange(4)).all()
    assert set(clips.ravel()) == set(range(12))
    within = clips % 3
    assert (within[:, 0] != within[:, 1]).any()  # drawn apart for each segment


def test_uniform_keeps_frames_evenly_apart():
    sampler = FrameSampler(4, scheme="uniform")
    source = rng()
    clips = np.stack([sampler.train(12, 30.0, source) for _ in range(100)])
    assert (np.diff(clips, axis=1) == 3).all()
    assert set(clips[:, 0]) == {0, 1, 2}
    assert sampler.test(12, 30.0).tolist() == [[1, 4, 7, 10]]


def test_interval_and_point_are_those_of_tada():
    values, meta = stored(GOLDEN / "tada" / "frame_sampling.npz")
    for index, case in enumerate(meta["interval"]):
        sampler = FrameSampler(
            *(case["num_frames"], case["interval"], "interval", "clamp", case["target_fps"]), endpoint=False
        )
        clips = sampler.test(case["length"], case["fps"], case["num_clips"])
        assert clips.tolist() == values[f"interval_{index}"].tolist()
    for index, case in enumerate(meta["segment"]):
        clips = FrameSampler(case["num_frames"], scheme="point").test(case["length"], 30.0, case["num_clips"])
        assert clips.tolist() == values[f"segment_{index}"].tolist()


def test_interval_and_point_training_clips():
    source = rng()
    sampler = FrameSampler(4, 3, "interval", target_fps=30)
    clips = np.stack([sampler.train(40, 15.0, source) for _ in range(300)])
    # 6 frames at this rate, spread from the first to the last.
    assert set((clips[:, -1] - clips[:, 0]).tolist()) == {5}
    assert (clips.min(), clips.max()) == (0, 38)
    clips = np.stack([FrameSampler(4, scheme="point").train(12, 30.0, source) for _ in range(300)])
    assert (abs(clips - (np.arange(4) * 3 + 1.5)) <= 1.5).all()
    assert set(clips.ravel()) == set(range(12))
    assert FrameSampler(4, 3, "interval").test(40, 0.0, 3)[-1].tolist() == [28, 31, 35, 39]


def test_spread_over_short_videos():
    assert segment_indices(2, 6, 0.5).tolist() == [0, 0, 0, 1, 1, 1]
    assert segment_indices(1, 3, 0.5).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scheme", ["dense", "interval", "segment", "point", "uniform"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 15, 16, 17, 61, 64, 65, 300])
def test_always_in_range_and_in_order(scheme, num_frames):
    source = rng()
    for short in ("loop", "clamp"):
        sampler = FrameSampler(16, 4, scheme, short)
        clips = [sampler.train(num_frames, 30.0, source) for _ in range(50)]
        clips += list(sampler.test(num_frames, 30.0, num_clips=4))
        for clip in clips:
            assert clip.shape == (16,)
            assert clip.dtype == np.int64
            assert clip.min() >= 0
            assert clip.max() < num_frames
            if scheme not in ("dense", "interval") or short == "clamp":
                assert (np.diff(clip) >= 0).all()


def test_pure_function_of_the_generator():
    for scheme in ("dense", "interval", "segment", "point", "uniform"):
        sampler = FrameSampler(8, 4, scheme)
        first = [sampler.train(100, 30.0, rng(seed)).tolist() for seed in range(5)]
        assert first == [sampler.train(100, 30.0, rng(seed)).tolist() for seed in range(5)]
        assert any(clip != first[0] for clip in first)


def test_faults_are_named_together():
    with pytest.raises(
        ValueError, match=r"clip_length.*0.*frame_stride.*0.*dense, interval, segment, point, uniform.*'dens'"
    ):
        FrameSampler(0, 0, "dens")  # type: ignore[arg-type]


def test_parse_views():
    assert parse_views("10x3") == (10, 3)
    assert parse_views("1X1") == (1, 1)
    for wrong in ("3", "0x1", "3x2", "axb", "3x", "-1x3", "", "2x3x1"):
        with pytest.raises(ValueError, match="CLIPSxCROPS"):
            parse_views(wrong)
