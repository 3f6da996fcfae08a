"""The generated data set: symmetric in time within a pair, reproducible, written once or not at all."""

import json

import av
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from dtf.data.h264 import write_h264
from dtf.data.sets.motion import (
    CLASS_NAMES,
    FPS,
    NUM_FRAMES,
    PAIRS,
    SIZE_PX,
    MotionDataModule,
    generate_motion,
    render_clip,
)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("pair", PAIRS, ids="|".join)
def test_second_class_is_the_first_played_backwards(pair):
    forward, backward = (render_clip(name, seeded(7)) for name in pair)
    assert forward.shape == (NUM_FRAMES, SIZE_PX, SIZE_PX, 3)
    assert forward.dtype == torch.uint8
    assert torch.equal(backward, forward.flip(0))
    assert not torch.equal(backward, forward)


def displacement_px(class_name: str, number: int) -> list[int]:
    """How far (x, y) the scene moves over six frames: the shift under which the two pictures match best."""
    clip = render_clip(class_name, seeded(number)).float().mean(-1)
    former, latter, reach = clip[9], clip[15], 10
    centre = latter[reach:-reach, reach:-reach]
    misfit = {
        (x, y): (former[reach - y : SIZE_PX - reach - y, reach - x : SIZE_PX - reach - x] - centre)
        .abs()
        .mean()
        for x in range(-reach, reach + 1)
        for y in range(-reach, reach + 1)
    }
    return list(min(misfit, key=misfit.__getitem__))


@pytest.mark.parametrize(
    ("class_name", "axis", "sign"),
    [
        ("translate_right", 0, 1),
        ("translate_left", 0, -1),
        ("translate_down", 1, 1),
        ("translate_up", 1, -1),
    ],
)
def test_translations_go_where_their_name_says(class_name, axis, sign):
    for number in range(4):
        move = displacement_px(class_name, number)
        assert move[axis] * sign >= 2
        assert abs(move[1 - axis]) <= 1


@pytest.mark.parametrize(
    ("class_name", "turn", "zoom"),
    [("rotate_cw", 1, 0), ("rotate_ccw", -1, 0), ("grow", 0, 1), ("shrink", 0, -1)],
)
def test_turns_and_zooms_go_where_their_name_says(class_name, turn, zoom):
    clip = render_clip(class_name, seeded(2)).float().mean(-1)
    former, latter = clip[9][None], clip[15][None]
    inner = slice(16, 48)

    def misfit(clockwise_degrees, factor):
        # torchvision counts clockwise where y points down.
        guess = affine(former, clockwise_degrees, [0, 0], factor, [0.0], InterpolationMode.BILINEAR)
        return (guess - latter)[:, inner, inner].abs().mean()

    guesses = [(5.0 * turns, 1 + 0.1 * zooms) for turns in range(-6, 7) for zooms in range(-4, 5)]
    degrees, factor = min(guesses, key=lambda guess: misfit(*guess))
    # A step beside the truth is noise.
    assert np.trunc(degrees / 10) == 0 if turn == 0 else degrees * turn >= 10
    assert abs(factor - 1) < 0.11 if zoom == 0 else (factor - 1) * zoom > 0.05


def test_distant_events_are_in_the_named_order():
    clip = render_clip("bright_then_dark", seeded(3)).float()
    bright = (clip > 245).all(-1).sum((1, 2)).argmax()
    dark = (clip < 12).all(-1).sum((1, 2)).argmax()
    assert 8 <= dark - bright <= NUM_FRAMES


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match=r"'sideways'.*translate_left"):
        render_clip("sideways", seeded(0))


def test_files_are_h264_and_close_to_what_was_drawn(tmp_path):
    frames = render_clip("grow", seeded(1)).numpy()
    write_h264(tmp_path / "clip.mp4", frames)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == frames.shape
    # Chroma is stored at half resolution, so compare brightness.
    assert np.abs(decoded.mean(-1) - frames.mean(-1)).mean() < 6


@pytest.mark.slow
def test_generated_once_reproducibly_and_only_whole(tmp_path):
    counts = {"train": 2, "test": 1}
    root = generate_motion(tmp_path / "a" / "motion", counts, seed=5)
    files = sorted(path.relative_to(root) for path in root.rglob("*.mp4"))
    assert len(files) == 3 * len(CLASS_NAMES)
    assert {path.parts[1] for path in files} == set(CLASS_NAMES)
    again = generate_motion(tmp_path / "b", counts, seed=5)
    assert all((root / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert len({(root / path).read_bytes() for path in files}) == len(files)

    stamps = {path: (root / path).stat().st_mtime_ns for path in files}
    generate_motion(root, counts, seed=5)
    assert stamps == {path: (root / path).stat().st_mtime_ns for path in files}


def test_a_folder_with_other_content_is_refused_and_kept(tmp_path):
    root = generate_motion(tmp_path / "motion", {"test": 1})
    with pytest.raises(ValueError, match=r"other settings.*set data.root"):
        generate_motion(root, {"test": 1}, seed=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no motion set"):
        generate_motion(tmp_path / "mine", {"test": 1})
    assert json.loads((root / "motion.json").read_text())["seed"] == 0


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(path, frames, fps):
        raise OSError("no space left")

    monkeypatch.setattr("dtf.data.sets.motion.write_h264", full_disk)
    with pytest.raises(OSError, match="no space"):
        generate_motion(tmp_path / "motion", {"test": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (4, r"^data\.clips_per_class: must be a mapping \{train: \.\.\., \.\.\.\}, got 4$"),
        ({"vali": 4}, r"^data\.clips_per_class: unknown key 'vali'; did you mean 'val'"),
        (
            {"train": 1, "val": -1},
            r"^data\.clips_per_class: val must be a whole number of at least 0, got -1$",
        ),
        ({"train": "x"}, r"train must be a whole number of at least 0, got 'x'$"),
    ],
)
def test_numbers_of_videos_are_checked_before_any_is_made(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        MotionDataModule(tmp_path / "motion", clips_per_class=given)
