"""Augmentation: arithmetic against torchvision and by hand, randomness by its distribution and its source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from dtf.data.transforms import (
    Box,
    TestTransform,
    TrainTransform,
    crop_and_resize,
    normalize,
    random_resized_box,
    short_side_box,
    view_boxes,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int, width: int, frames: int = 1, seed: int = 0) -> torch.Tensor:
    """(T, C, H, W) uint8 in the memory that decoded frames have."""
    values = torch.randint(0, 256, (frames, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return values.to(torch.uint8).permute(0, 3, 1, 2)


def test_crop_and_resize():
    """The box and nothing else, whatever the memory; no resizing when the box has the size already."""
    frame = picture(40, 60)[0]
    box = Box(3, 5, 20, 30)
    part = frame[:, 3:23, 5:35]
    assert torch.equal(crop_and_resize(frame, Box(3, 5, 20, 20), 20), frame[:, 3:23, 5:25])
    expected = F.resize(part.contiguous(), [16, 16], antialias=True)
    assert torch.equal(crop_and_resize(frame, box, 16), expected)
    exact = torch.nn.functional.interpolate(
        part[None].double(), (16, 16), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert (crop_and_resize(frame, box, 16).double() - exact).abs().max() <= 1.0  # rounding
    cubic = F.resize(part.contiguous(), [16, 16], F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crop_and_resize(frame, box, 16, "bicubic"), cubic)
    assert not torch.equal(cubic, expected)


def test_interpolation_is_drawn_where_there_is_a_choice():
    source = rng()
    before = source.bit_generator.state
    assert TrainTransform(32).draw_interpolation(source) == "bilinear"
    assert TrainTransform(32, interpolation="bicubic").draw_interpolation(source) == "bicubic"
    assert source.bit_generator.state == before
    drawn = [TrainTransform(32, interpolation="random").draw_interpolation(source) for _ in range(50)]
    assert 15 < drawn.count("bicubic") < 35


def test_view_boxes_by_hand():
    assert view_boxes(256, 341, 256, 3) == [(0, 0, 256, 256), (0, 42, 256, 256), (0, 85, 256, 256)]
    assert view_boxes(341, 256, 256, 3) == [(0, 0, 256, 256), (42, 0, 256, 256), (85, 0, 256, 256)]
    assert view_boxes(256, 341, 224, 1) == [(16, 58, 224, 224)]
    assert view_boxes(64, 64, 64, 3) == [(0, 0, 64, 64)] * 3


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (50, 50)])
def test_test_transform_agrees_with_torchvision(height, width):
    frame = picture(height, width)[0]
    (center,) = TestTransform(32, 40).crops(frame)
    assert torch.equal(center, F.center_crop(F.resize(frame, [40], antialias=True), [32, 32]))
    (cubic,) = TestTransform(32, 40, interpolation="bicubic").crops(frame)
    resized = F.resize(frame, [40], F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(cubic, F.center_crop(resized, [32, 32]))
    crops = TestTransform(32, 32, 3).crops(frame)
    resized = F.resize(frame, [32], antialias=True)
    assert torch.equal(crops[0], resized[:, :32, :32])
    assert torch.equal(crops[1], F.center_crop(resized, [32, 32]))
    assert torch.equal(crops[2], resized[:, -32:, -32:])


def test_random_resized_box_distribution():
    source = rng()
    boxes = [random_resized_box(240, 320, (0.2, 1.0), (3 / 4, 4 / 3), source) for _ in range(500)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 240 - height
        assert 0 <= left <= 320 - width
        assert 0.19 < height * width / (240 * 320) <= 1.0
        assert 0.73 < width / height < 1.36
    areas = np.array([b.height * b.width for b in boxes]) / (240 * 320)
    assert areas.min() < 0.25
    assert areas.max() > 0.85
    small = [random_resized_box(240, 320, (0.2, 0.4), (3 / 4, 4 / 3), source) for _ in range(500)]
    assert abs(np.log([b.width / b.height for b in small]).mean()) < 0.03  # even in the logarithm


def test_random_resized_box_falls_back_to_the_centre():
    """A frame so narrow that no box of the wanted ratio has the wanted area."""
    assert random_resized_box(10, 100, (0.9, 1.0), (3 / 4, 4 / 3), rng()) == (0, 43, 10, 13)
    assert random_resized_box(100, 10, (0.9, 1.0), (3 / 4, 4 / 3), rng()) == (43, 0, 13, 10)


def test_short_side_box():
    """Crop 224 at short side 256 covers 224/256 of the short side; at 224 it is the whole short side."""
    source = rng()
    boxes = [short_side_box(256, 340, 256, 224, source) for _ in range(300)]
    assert {(b.height, b.width) for b in boxes} == {(224, 224)}
    assert {b.top for b in boxes} == set(range(33))
    assert max(b.left for b in boxes) > 110
    assert short_side_box(120, 160, 224, 224, rng()).height == 120
    assert short_side_box(128, 160, 256, 224, rng()).height == 112


def test_train_transform_treats_all_frames_alike():
    transform = TrainTransform(
        16, flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
    )
    one = picture(24, 24)
    for seed in range(10):
        clip = transform.recolor(one.repeat(5, 1, 1, 1), 0, rng(seed))[0]
        assert clip.shape == (5, 3, 24, 24)
        assert clip.dtype == torch.uint8
        assert (clip == clip[:1]).all()


def test_train_transform_is_a_function_of_the_generator():
    transform = TrainTransform(16, flip=0.5, brightness=0.4, hue=0.1)
    clip = picture(24, 24, 3)
    torch.manual_seed(1)
    first = [transform.recolor(clip, 0, rng(seed))[0] for seed in range(6)]
    torch.manual_seed(2)
    second = [transform.recolor(clip, 0, rng(seed))[0] for seed in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, first[0]) for a in first)


def test_flip_switch():
    clip = picture(8, 10, 2)
    assert torch.equal(TrainTransform(8, flip=0.0).recolor(clip, 0, rng())[0], clip)
    assert torch.equal(TrainTransform(8, flip=1.0).recolor(clip, 0, rng())[0], clip.flip(-1))
    flips = [torch.equal(TrainTransform(8, flip=0.5).recolor(clip, 0, rng(s))[0], clip) for s in range(100)]
    assert 30 < sum(flips) < 70


def test_center_crop_mode():
    transform = TrainTransform(8, crop="center", flip=0.0)
    assert transform.draw_box(48, 64, rng()) == (0, 8, 48, 48)
    frame = picture(8, 8)[0]
    assert torch.equal(transform.crop_frame(frame, transform.draw_box(8, 8, rng())), frame)


def test_normalize_by_hand_and_memory():
    video = picture(4, 6, 2).unsqueeze(0).transpose(1, 2)  # (B, C, T, H, W)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    expected = video.double() / 255
    for c in range(3):
        expected[:, c] = (expected[:, c] - mean[c]) / std[c]
    out = normalize(video, mean, std)
    assert out.dtype == torch.float32
    assert out.stride() == video.stride()
    assert torch.allclose(out.double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "centre"}, "crop must be one of random_resized, short_side_jitter, center"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"crop": "short_side_jitter"}, "short_side_px"),
        ({"crop": "short_side_jitter", "short_side_px": (16, 40)}, "short_side_px"),
        ({"flip": 1.5, "hue": 0.7}, "flip must lie in 0..1.*hue must lie in 0..0.5"),
        ({"brightness": -0.1}, "brightness"),
        (
            {"interpolation": "nearest"},
            "interpolation must be bilinear, bicubic, random or null, got 'nearest'",
        ),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(32, **settings)


def test_crop_must_fit():
    with pytest.raises(ValueError, match="short_side_px=32"):
        TestTransform(40, 32)
    with pytest.raises(ValueError, match="interpolation must be bilinear, bicubic or null, got 'random'"):
        TestTransform(32, interpolation="random")


def test_a_mirrored_clip_gets_the_mirrored_label():
    pairs = ((86, 87), (93, 94))
    clip = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    always, never = (TrainTransform(8, flip=p, flip_labels=pairs) for p in (1.0, 0.0))
    assert [always.recolor(clip, label, rng())[1] for label in (86, 87, 93, 94, 5)] == [87, 86, 94, 93, 5]
    assert [never.recolor(clip, label, rng())[1] for label in (86, 87, 5)] == [86, 87, 5]


@pytest.mark.parametrize("pairs", [((1, 2, 3),), ((1, 2), (2, 3)), ((4, 4),)])
def test_labels_of_mirrored_classes_are_pairs(pairs):
    with pytest.raises(ValueError, match="flip_labels must be pairs"):
        TrainTransform(8, flip_labels=pairs)
