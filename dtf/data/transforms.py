"""Augmentation and view crops on uint8 frames: arithmetic in functions, randomness in `TrainTransform`.

Geometry works frame by frame, straight from the decoded frame to the output size, so that a clip never
exists at the size of its file. Whatever is random is drawn once per clip from the generator given, never
from global state.

Shape letters: T frames, C = 3 colours, H height, W width, S side of the square crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dtf.data.augment import RandAugment, RandomErasing, adjust_hue, gaussian_blur

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Crop = Literal["random_resized", "short_side_jitter", "center"]
Interpolation = Literal["bilinear", "bicubic"]
"""How a resized pixel is weighed from those around it; both with antialiasing."""


class Box(NamedTuple):
    """A rectangle of pixels in a frame."""

    top: int
    left: int
    height: int
    width: int


def random_resized_box(
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    rng: np.random.Generator,
) -> Box:
    """A box of random area and aspect ratio (width / height), the ratio drawn uniformly in its logarithm.

    Ten tries to fit it into the frame, then the largest central box within the ratio limits, as torchvision's
    RandomResizedCrop.

    Args:
        height, width: of the frame in pixels.
        scale: smallest and largest share of the frame's area.
        ratio: smallest and largest aspect ratio.
        rng: source of randomness.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def short_side_box(height: int, width: int, short_side: float, crop: int, rng: np.random.Generator) -> Box:
    """The square that a random crop of `crop` pixels covers after resizing the short side to `short_side`.

    In pixels of the frame as it is, so that only this square need be resized. Rounding it to whole pixels
    changes the magnification by less than one pixel in its side, the deliberate difference to resizing first.

    Args:
        height, width: of the frame in pixels.
        short_side: pixels of the short side after resizing, at least `crop`.
        crop: side of the crop in pixels after resizing.
        rng: source of randomness.
    """
    side = max(1, min(min(height, width), round(crop * min(height, width) / short_side)))
    return Box(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)


def crop_and_resize(
    frame: torch.Tensor, box: Box, size: int, interpolation: Interpolation = "bilinear"
) -> torch.Tensor:
    """(C, H, W) uint8 -> (C, size, size) uint8 in channels_last memory.

    The same values as torchvision's `resized_crop`, several times as fast for frames in channels_last memory.
    """
    return _resize(frame, box, size, size, interpolation)


def resize_short_side(
    frame: torch.Tensor, short_side: int, interpolation: Interpolation = "bilinear"
) -> torch.Tensor:
    """(C, H, W) uint8 resized so that its short side has `short_side` pixels; the long side rounds down.

    The same values as torchvision's `resize`, in channels_last memory.
    """
    height, width = frame.shape[1:]
    shorter = min(height, width)
    whole = Box(0, 0, height, width)
    height, width = short_side * height // shorter, short_side * width // shorter
    return _resize(frame, whole, height, width, interpolation)


def _resize(
    frame: torch.Tensor, box: Box, height: int, width: int, interpolation: Interpolation
) -> torch.Tensor:
    """The part of a (C, H, W) frame in the box at another size.

    torchvision's functions lose the memory format of a single frame: torch's kernel then writes colour
    planes, which costs more to put back in order than the resizing itself. Rows of pixels are kept here all
    the way.
    """
    rows_HWC = frame.permute(1, 2, 0)[box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) == (height, width):
        return rows_HWC.permute(2, 0, 1)
    batch = rows_HWC.contiguous().unsqueeze(0).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(batch, (height, width), mode=interpolation, antialias=True)[0]


def view_boxes(height: int, width: int, crop: int, num_crops: int) -> list[Box]:
    """Square test crops: the centre (1), or start, middle and end of the long side (3).

    Args:
        height, width: of the resized frame, both at least `crop`.
        crop: side in pixels.
        num_crops: 1 or 3.
    """
    assert num_crops in (1, 3)
    assert crop <= min(height, width)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    if num_crops == 1:
        return [Box(top, left, crop, crop)]
    if height > width:
        return [Box(t, left, crop, crop) for t in (0, top, height - crop)]
    return [Box(top, x, crop, crop) for x in (0, left, width - crop)]


def normalize(
    video: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 clips to what the networks take: (x / 255 - mean) / std by colour. Memory layout is kept.

    Args:
        video: (B, C, T, H, W) uint8 in 0..255, on any device.
        mean, std: of each colour, for values in 0..1.
        dtype: floating point type of the result.
    """
    shape = (1, -1, 1, 1, 1)
    scale = torch.tensor([255 * s for s in std], dtype=dtype).to(video.device, non_blocking=True).view(shape)
    shift = torch.tensor([255 * m for m in mean], dtype=dtype).to(video.device, non_blocking=True).view(shape)
    return video.to(dtype).sub_(shift).div_(scale)


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, flip, colours, blur, RandAugment and erasing in this order, alike for all frames.

    Args:
        crop_px: side of the output in pixels.
        crop: "random_resized" (random area and aspect), "short_side_jitter" (random magnification, aspect
            kept) or "center" (none: short side to crop_px, centre).
        scale: random_resized: share of the frame's area, smallest and largest.
        ratio: random_resized: width / height, smallest and largest.
        short_side_px: short_side_jitter: range of the short side in pixels before a crop of crop_px.
        interpolation: "bilinear", "bicubic" or "random": one of the two, drawn for each clip (timm's
            recipes); None: bilinear.
        flip: probability of mirroring left and right. 0 wherever direction matters, or see flip_labels.
        flip_labels: pairs of classes that a mirror turns into each other ("left to right", "right to left").
        brightness, contrast, saturation: factors are drawn from 1 - x .. 1 + x; 0 is off.
        hue: shift drawn from -x .. x turns of the colour circle (at most 0.5); 0 is off.
        color_probability: of the four above, together; they come in random order.
        grayscale: probability of dropping the colours.
        blur: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the output, smallest and largest.
        rand_augment: `dtf.data.augment.RandAugment`; None: off.
        erase: `dtf.data.augment.RandomErasing`; None: off.
        mean, std: of each colour for values in 0..1; rand_augment and erase fill with them.

    Raises:
        ValueError: values out of range; all faults at once.
    """

    crop_px: int
    crop: Crop = "random_resized"
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short_side_px: tuple[int, int] | None = None
    interpolation: Interpolation | Literal["random"] | None = None
    flip: float = 0.5
    flip_labels: tuple[tuple[int, int], ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_probability: float = 1.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        faults = []
        if self.crop_px < 1:
            faults.append(f"crop_px must be at least 1, got {self.crop_px}")
        if self.crop not in get_args(Crop):
            faults.append(f"crop must be one of {', '.join(get_args(Crop))}, got {self.crop!r}")
        for name, top in (("scale", 1.0), ("ratio", math.inf), ("blur_sigma", math.inf)):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= top:
                limit = f" <= {top:g}" if top < math.inf else ""
                faults.append(f"{name} must be [low, high] with 0 < low <= high{limit}, got {list(pair)}")
        if self.crop == "short_side_jitter":
            pair = self.short_side_px or ()
            if len(pair) != 2 or not self.crop_px <= pair[0] <= pair[1]:
                given = self.short_side_px if self.short_side_px is None else list(pair)
                faults.append(
                    f"short_side_px must be [low, high], crop_px={self.crop_px} <= low <= high; got {given}"
                )
        if self.interpolation not in (None, "random", *get_args(Interpolation)):
            allowed = f"{', '.join(get_args(Interpolation))}, random or null"
            faults.append(f"interpolation must be {allowed}, got {self.interpolation!r}")
        limits = {"flip": 1.0, "hue": 0.5, "color_probability": 1.0, "grayscale": 1.0, "blur": 1.0}
        for name in ("brightness", "contrast", "saturation", *limits):
            value, top = getattr(self, name), limits.get(name, math.inf)
            if not 0 <= value <= top:
                faults.append(f"{name} must lie in 0..{top:g}, got {value}")
        labels = [label for pair in self.flip_labels for label in pair]
        if any(len(pair) != 2 for pair in self.flip_labels) or len(set(labels)) < len(labels):
            faults.append(
                f"flip_labels must be pairs of labels, each label once, got {list(self.flip_labels)}"
            )
        if faults:
            raise ValueError("augmentation: " + "; ".join(faults))

    def draw_box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """The part of a frame of this size that becomes the crop."""
        if self.crop == "random_resized":
            return random_resized_box(height, width, self.scale, self.ratio, rng)
        if self.crop == "short_side_jitter":
            assert self.short_side_px is not None
            short_side = rng.uniform(*self.short_side_px)
            return short_side_box(height, width, short_side, self.crop_px, rng)
        side = min(height, width)
        return Box((height - side) // 2, (width - side) // 2, side, side)

    def draw_interpolation(self, rng: np.random.Generator) -> Interpolation:
        """How the crop is resized; nothing is drawn where there is no choice."""
        if self.interpolation == "random":
            return get_args(Interpolation)[int(rng.integers(2))]
        return self.interpolation or "bilinear"

    def crop_frame(
        self, frame: torch.Tensor, box: Box, interpolation: Interpolation = "bilinear"
    ) -> torch.Tensor:
        """(C, H, W) uint8 -> (C, S, S) uint8: the part in the box at the output size."""
        return crop_and_resize(frame, box, self.crop_px, interpolation)

    def augment(self, clip: torch.Tensor, label: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        """Everything that comes after the crop.

        Args:
            clip: (T, C, H, W) uint8.
            label: its class.
            rng: source of randomness.

        Returns:
            The clip, same shape and type, and the class of what it shows now (see flip_labels).
        """
        clip, label = self.recolor(clip, label, rng)
        mean, std = ([255 * x for x in colors] for colors in (self.mean, self.std))
        if self.rand_augment is not None:
            clip = self.rand_augment(clip, mean, rng)
        if self.erase is not None:
            clip = self.erase(clip, mean, std, rng)
        return clip, label

    def recolor(self, clip: torch.Tensor, label: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        """Flip, colour jitter and blur of a whole clip.

        Args:
            clip: (T, C, H, W) uint8.
            label: its class.
            rng: source of randomness.

        Returns:
            The clip, same shape and type, and the class of what it shows now (see flip_labels).
        """
        if self.flip and rng.random() < self.flip:
            clip = F.horizontal_flip(clip)
            for left, right in self.flip_labels:
                if label in (left, right):
                    label = right if label == left else left
                    break
        jitters = [name for name in ("brightness", "contrast", "saturation", "hue") if getattr(self, name)]
        if jitters and self.color_probability < 1 and rng.random() >= self.color_probability:
            jitters = []
        for name in rng.permutation(jitters).tolist():
            amount = getattr(self, name)
            if name == "hue":
                clip = adjust_hue(clip, float(rng.uniform(-amount, amount)))
            else:
                factor = float(rng.uniform(max(0.0, 1 - amount), 1 + amount))
                clip = getattr(F, f"adjust_{name}")(clip, factor)
        if self.grayscale and rng.random() < self.grayscale:
            clip = F.rgb_to_grayscale(clip, num_output_channels=3)
        if self.blur and rng.random() < self.blur:
            clip = gaussian_blur(clip, rng.uniform(*self.blur_sigma))
        return clip, label


@dataclass(frozen=True)
class TestTransform:
    """Short side to a fixed size, then square crops.

    Args:
        crop_px: side of the output in pixels.
        short_side_px: short side of the resized frame in pixels; None: crop_px.
        num_crops: 1 (centre) or 3 (start, middle, end of the long side).
        interpolation: of the resized frame, "bilinear" or "bicubic"; None: bilinear.

    Raises:
        ValueError: a crop larger than the resized frame, an unknown interpolation.
    """

    __test__ = False  # not a test case, whatever its name

    crop_px: int
    short_side_px: int | None = None
    num_crops: int = 1
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.crop_px <= self.resized_px:
            raise ValueError(
                f"crop_px must lie in 1..short_side_px={self.resized_px}, so that it fits; got {self.crop_px}"
            )
        if self.interpolation not in (None, *get_args(Interpolation)):
            allowed = f"{', '.join(get_args(Interpolation))} or null"
            raise ValueError(f"interpolation must be {allowed}, got {self.interpolation!r}")

    @property
    def resized_px(self) -> int:
        """Pixels of the short side after resizing."""
        return self.crop_px if self.short_side_px is None else self.short_side_px

    def crops(self, frame: torch.Tensor) -> list[torch.Tensor]:
        """(C, H, W) uint8 -> num_crops views, each (C, S, S) uint8."""
        resized = resize_short_side(frame, self.resized_px, self.interpolation or "bilinear")
        boxes = view_boxes(resized.shape[-2], resized.shape[-1], self.crop_px, self.num_crops)
        return [F.crop(resized, *box) for box in boxes]
