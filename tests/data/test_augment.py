"""RandAugment, random erasing, blur: operations against torchvision and timm, draws by their distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_transforms import picture, rng
from timm.data import auto_augment
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dtf.data import augment
from dtf.data.augment import (
    COLOR_OPS,
    RAND_AUGMENT_OPS,
    SIGNED_OPS,
    RandAugment,
    RandomErasing,
    apply_operation,
    gaussian_blur,
)
from dtf.data.datamodule import VideoDataModule
from dtf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform, normalize

FILL = [124.0, 116.0, 104.0]
MEAN, STD = ([255 * x for x in v] for v in (IMAGENET_MEAN, IMAGENET_STD))

# timm's names; its translations are counted in shares of the side here.
TIMM = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def scene(height: int = 60, width: int = 80) -> torch.Tensor:
    """(1, C, H, W) uint8, smooth and of few dark or bright values, so that operations differ."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [60 + 120 * x, 90 + 100 * y, 140 + 60 * torch.sin(6 * x + 4 * y)]
    clip = torch.stack(planes).round().to(torch.uint8).unsqueeze(0)
    clip[..., 20:40:4, 30:50] += 60  # edges, for sharpness
    return clip


def test_operations_are_those_of_timm():
    assert set(TIMM) == set(RAND_AUGMENT_OPS)
    assert sorted(TIMM.values()) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("magnitude", [0.0, 3.0, 7.3, 9.9])
@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_operation_agrees_with_timm(name, magnitude, monkeypatch):
    """On a PIL image and by timm's own table of magnitudes; both directions where there are two."""
    clip = scene()
    image = Image.fromarray(clip[0].permute(1, 2, 0).numpy())
    hparams = {"img_mean": tuple(int(x) for x in FILL), "interpolation": Image.Resampling.BILINEAR}
    operation = auto_augment.AugmentOp(TIMM[name], prob=1.0, magnitude=magnitude, hparams=hparams)
    expected = []
    for direction in (1, -1) if name in SIGNED_OPS else (1,):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda v, sign=direction: sign * v)
        expected.append(torch.from_numpy(np.array(operation(image))).permute(2, 0, 1).int())
    level = magnitude / 10
    found = [apply_operation(clip, name, sign * level, FILL) for sign in (1, -1)[: len(expected)]]
    for out in found:
        assert out.shape == clip.shape
        assert out.dtype == torch.uint8
    # Edges of what came in from outside and rounding apart. timm's directions may be the other way round.
    errors = [[(a[0].int() - b).abs().float().mean().item() for b in expected] for a in found]
    best = min(
        sum(errors[i][i] for i in range(len(found))), sum(errors[i][-1 - i] for i in range(len(found)))
    )
    assert best / len(found) < (0.8 if name in COLOR_OPS else 1.5), errors
    if magnitude > 5:
        changed = (found[0].int() - clip.int()).abs().float().mean()
        assert changed > (0.5 if name == "sharpness" else 5), "the operation does nothing"


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        ("auto_contrast", 1.0, F.autocontrast),
        ("equalize", 1.0, F.equalize),
        ("invert", 1.0, F.invert),
        ("posterize", 0.7, lambda x: F.posterize(x, 2)),
        ("posterize", 1.0, lambda x: F.posterize(x, 1)),
        ("solarize", 0.5, lambda x: F.solarize(x, 128)),
        ("solarize", 0.0, lambda x: x),
        ("solarize_add", 0.7, lambda x: (x.int() + 77 * (x < 128)).to(torch.uint8)),
        ("color", -0.7, lambda x: F.adjust_saturation(x, 0.37)),
        ("contrast", 0.7, lambda x: F.adjust_contrast(x, 1.63)),
        ("brightness", -1.0, lambda x: F.adjust_brightness(x, 0.1)),
        ("sharpness", 0.7, lambda x: F.adjust_sharpness(x, 1.63)),
        ("rotate", 0.5, lambda x: F.rotate(x, -15.0, InterpolationMode.BILINEAR, fill=FILL)),
        ("translate_x", 0.5, lambda x: F.affine(x, 0, [18, 0], 1, [0, 0], fill=FILL)),
        ("translate_y", -0.5, lambda x: F.affine(x, 0, [0, -14], 1, [0, 0], fill=FILL)),
        (
            "shear_x",
            0.7,
            lambda x: F.affine(
                x,
                0,
                [0, 0],
                1,
                [math.degrees(math.atan(0.21)), 0],
                InterpolationMode.BILINEAR,
                FILL,
                [0, 0],
            ),
        ),
    ],
)
def test_operation_is_torchvisions(name, level, expected):
    clip = picture(60, 80, 3)
    assert torch.equal(apply_operation(clip, name, level, FILL), expected(clip))


def test_unknown_operation():
    with pytest.raises(ValueError, match="no operation 'flip'; there are: auto_contrast"):
        apply_operation(picture(8, 8), "flip", 0.5, FILL)


def test_rand_augment_draws(monkeypatch):
    """n draws with replacement, each carried out with the probability, magnitudes around m within 0..10."""
    calls = []
    monkeypatch.setattr(
        augment, "apply_operation", lambda clip, name, level, fill: calls.append((name, level)) or clip
    )
    clip = picture(8, 8)
    source = rng()
    per_clip = []
    for _ in range(1000):
        before = len(calls)
        RandAugment(n=4, m=7, std=0.5, probability=0.5)(clip, FILL, source)
        per_clip.append(len(calls) - before)
    assert set(per_clip) == {0, 1, 2, 3, 4}
    assert abs(np.mean(per_clip) - 2.0) < 0.1
    names = [name for name, _ in calls]
    counts = np.array([names.count(name) for name in RAND_AUGMENT_OPS]) / len(names)
    assert np.abs(counts - 1 / 15).max() < 0.02
    levels = np.array([abs(level) for _, level in calls])
    assert abs(levels.mean() - 0.7) < 0.005
    assert abs(levels.std() - 0.05) < 0.005
    for name in RAND_AUGMENT_OPS:
        signs = [level < 0 for n, level in calls if n == name]
        assert 0.3 < np.mean(signs) < 0.7 if name in SIGNED_OPS else not any(signs)
    calls.clear()
    for _ in range(200):
        RandAugment(n=2, m=10, std=5.0, probability=1.0)(clip, FILL, source)
    assert len(calls) == 400
    assert max(abs(level) for _, level in calls) == 1.0
    calls.clear()
    RandAugment(n=3, m=4, std=0.0, probability=1.0)(clip, FILL, source)
    assert {abs(level) for _, level in calls} == {0.4}


def test_erasing_covers_one_rectangle_of_all_frames():
    clip = torch.full((4, 3, 40, 60), 7, dtype=torch.uint8)
    source = rng()
    erase = RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0))
    areas, aspects, corners = [], [], set()
    for _ in range(300):
        out = erase(clip, MEAN, STD, source)
        assert (clip == 7).all(), "the input was written to"
        assert (out == out[:1]).all()
        # A noise pixel equals 7 by chance only; a whole row or column never does.
        covered = (out[0] != 7).any(0)
        rows, columns = covered.any(1).nonzero().flatten(), covered.any(0).nonzero().flatten()
        height, width = (int(x[-1] - x[0]) + 1 for x in (rows, columns))
        assert covered.sum() > 0.98 * height * width
        areas.append(height * width / 2400)
        aspects.append(math.log(height / width))
        corners.add((int(rows[0]), int(columns[0])))
    assert 0.08 < min(areas) < 0.12
    assert 0.28 < max(areas) < 0.32
    assert abs(np.mean(aspects)) < 0.08
    assert min(aspects) < -0.55
    assert max(aspects) > 0.55
    assert len(corners) > 200


def test_erasing_covers_several_rectangles_that_share_the_area():
    clip = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    source, counts, areas = rng(), [], []
    erase = RandomErasing(1.0, (0.12, 0.12), (1.0, 1.0), boxes=3)
    placed: list[tuple] = []

    def note(clip, top, left, height, width, pixels):
        placed.append((height, width))
        return clip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dtf.data.augment.F.erase", note)
        for _ in range(300):
            erase(clip, MEAN, STD, source)
            counts.append(len(placed))
            areas.append(sum(height * width for height, width in placed) / 64**2)
            placed.clear()
    assert all(80 < counts.count(n) < 120 for n in (1, 2, 3))
    assert min(areas) == pytest.approx(0.12, abs=0.01)
    assert max(areas) == pytest.approx(0.12, abs=0.01)


def test_erasing_fills_with_normal_noise_or_the_mean():
    """Normalised afterwards: normal noise but for the cut at 0..255, or zero."""
    clip = torch.zeros(2, 3, 200, 200, dtype=torch.uint8)
    whole = {"probability": 1.0, "area": (0.9, 0.95), "aspect": (1.0, 1.0)}

    def patch(fill):
        out = RandomErasing(**whole, fill=fill)(clip, MEAN, STD, rng())
        return normalize(out.unsqueeze(0).transpose(1, 2))[0, :, :, 20:180, 20:180]

    noise = patch("noise")
    assert noise.mean((1, 2, 3)).abs().max() < 0.06
    assert (noise.std((1, 2, 3)) - 1).abs().max() < 0.08
    flat = patch("mean")
    assert flat.abs().max() <= 0.5 / 255 / min(IMAGENET_STD) + 1e-6


def test_erasing_probability():
    clip = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    source = rng()
    erased = [bool(RandomErasing(0.25)(clip, MEAN, STD, source).any()) for _ in range(400)]
    assert 0.19 < np.mean(erased) < 0.31
    # No rectangle of this shape fits.
    assert not RandomErasing(1.0, (0.9, 0.9), (4.0, 4.0))(clip, MEAN, STD, source).any()


@pytest.mark.parametrize("sigma", [0.1, 0.9, 2.0])
def test_blur_is_torchvisions(sigma):
    clip = picture(30, 40, 2)
    side = 2 * math.ceil(3 * sigma) + 1
    expected = F.gaussian_blur(clip.contiguous(), [side, side], [sigma, sigma])
    assert (gaussian_blur(clip, sigma).int() - expected.int()).abs().max() <= 1  # order of sums
    assert gaussian_blur(picture(4, 5), 2.0).shape == (1, 3, 4, 5)  # smaller than the kernel


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.4])
def test_hue_is_torchvisions(shift):
    """Rounded from what it computes without rounding; all grey and one-coloured pixels are among them."""
    levels = torch.tensor([0, 1, 2, 60, 128, 254, 255], dtype=torch.uint8)
    clip = torch.cartesian_prod(levels, levels, levels).view(1, 7, 49, 3).permute(0, 3, 1, 2)
    for video in (clip, clip.contiguous(), picture(30, 40, 3)):
        out = augment.adjust_hue(video, shift)
        assert out.dtype == torch.uint8
        exact = 255 * F.adjust_hue(video.double() / 255, shift)
        assert (out.double() - exact).abs().max() < 0.51
        assert (out.int() - F.adjust_hue(video, shift).int()).abs().max() <= 1
    assert torch.equal(augment.adjust_hue(clip, 0.0), clip)


def test_blur_and_color_probability():
    clip = picture(16, 16)

    def share(**settings) -> float:
        transform = TrainTransform(16, flip=0.0, **settings)
        same = [torch.equal(transform.augment(clip, 0, rng(s))[0], clip) for s in range(200)]
        return 1 - sum(same) / len(same)

    assert share() == 0
    assert 0.4 < share(blur=0.5, blur_sigma=(1.0, 2.0)) < 0.6
    assert share(brightness=0.4, hue=0.1) > 0.97
    assert 0.72 < share(brightness=0.4, hue=0.1, color_probability=0.8) < 0.88
    assert share(brightness=0.4, color_probability=0.0) == 0


ALL = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "color_probability": 0.8,
    "grayscale": 0.2,
    "blur": 0.5,
    "rand_augment": RandAugment(),
    "erase": RandomErasing(0.5),
}


def test_all_frames_alike_and_a_function_of_the_generator():
    transform = TrainTransform(24, **ALL)
    clip = picture(24, 24).repeat(5, 1, 1, 1)
    torch.manual_seed(1)
    first = [transform.augment(clip, 0, rng(seed))[0] for seed in range(30)]
    torch.manual_seed(2)
    second = [transform.augment(clip, 0, rng(seed))[0] for seed in range(30)]
    for a, b in zip(first, second, strict=True):
        assert a.shape == clip.shape
        assert a.dtype == torch.uint8
        assert (a == a[:1]).all()
        assert torch.equal(a, b)
    assert len({tuple(a[0].flatten().tolist()) for a in first}) == 30


def test_what_is_off_draws_nothing():
    """The stream of random numbers, and with it every clip without these settings, stays as it was."""
    source, fresh = rng(3), rng(3)
    clip = picture(16, 16, 2)
    out, label = TrainTransform(16, flip=0.0).augment(clip, 4, source)
    assert out is clip
    assert label == 4
    # One permutation of no jitters is all that is drawn.
    fresh.permutation([])
    assert source.bit_generator.state == fresh.bit_generator.state
    jitter = {"flip": 0.5, "brightness": 0.4, "hue": 0.1, "grayscale": 0.2}
    for seed in range(10):
        source, old = rng(seed), rng(seed)
        new = TrainTransform(16, **jitter).augment(clip, 0, source)[0]
        assert (new.int() - jitter_by_hand(clip, old).int()).abs().max() <= 2  # hue is rounded otherwise
        assert source.bit_generator.state == old.bit_generator.state


def jitter_by_hand(clip: torch.Tensor, source: np.random.Generator) -> torch.Tensor:
    if source.random() < 0.5:
        clip = clip.flip(-1)
    for name in source.permutation(["brightness", "hue"]).tolist():
        if name == "hue":
            clip = F.adjust_hue(clip, source.uniform(-0.1, 0.1))
        else:
            clip = F.adjust_brightness(clip, source.uniform(0.6, 1.4))
    return F.rgb_to_grayscale(clip, 3) if source.random() < 0.2 else clip


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RandAugment, {"n": 0}, "n must be a whole number, at least 1, got 0; null switches it off"),
        (RandAugment, {"m": 15, "probability": 2}, r"m must lie in 0\.\.10, got 15; probability must lie in"),
        (RandAugment, {"std": -1}, "std"),
        (RandomErasing, {"area": (0.3, 0.2)}, "area must be"),
        (RandomErasing, {"boxes": 0}, "boxes must be a whole number, at least 1, got 0"),
        (RandomErasing, {"aspect": (0, 1), "fill": "black"}, "aspect must be .* fill must be noise or mean"),
    ],
)
def test_settings_are_checked(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_settings_of_the_data_module(tmp_path):
    erase = {"probability": 0.5, "area": [0.1, 0.2], "fill": "mean"}
    augmentation = {"rand_augment": {"n": 2, "m": 9}, "erase": erase}
    transform = VideoDataModule(tmp_path, augment=augmentation, mean=(0.5, 0.5, 0.5)).train_transform
    assert transform.rand_augment == RandAugment(2, 9)
    assert transform.erase == RandomErasing(0.5, (0.1, 0.2), fill="mean")
    assert transform.mean == (0.5, 0.5, 0.5)
    off = VideoDataModule(tmp_path, augment={"rand_augment": None, "erase": None}).train_transform
    assert off.rand_augment is None
    assert off.erase is None
    with pytest.raises(ValueError, match=r"data\.augment\.rand_augment: unknown key 'mag'"):
        VideoDataModule(tmp_path, augment={"rand_augment": {"mag": 3}})
    with pytest.raises(ValueError, match=r"data\.augment\.erase: probability must lie in"):
        VideoDataModule(tmp_path, augment={"erase": {"probability": 3}})
    with pytest.raises(ValueError, match=r"data\.augment\.rand_augment: .*mapping"):
        VideoDataModule(tmp_path, augment={"rand_augment": True})
    with pytest.raises(ValueError, match=r"data\.augment: unknown key 'erasing'"):
        VideoDataModule(tmp_path, augment={"erasing": {}})
