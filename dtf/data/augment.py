"""Augmentation of uint8 clips beyond crops: RandAugment, random erasing, Gaussian blur, hue.

As in `dtf.data.transforms`: arithmetic in functions over torchvision, randomness drawn once per clip from the
generator given, so that all frames are treated alike.

Shape letters: T frames, C = 3 colours, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dtf.values import is_integer, is_number

Fill = Literal["noise", "mean"]

MAX_MAGNITUDE = 10.0

COLOR_OPS = (
    *("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
)
GEOMETRY_OPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
RAND_AUGMENT_OPS = COLOR_OPS + GEOMETRY_OPS
SIGNED_OPS = ("color", "contrast", "brightness", "sharpness", *GEOMETRY_OPS)
"""Operations that go either way, each with probability 1/2."""


def apply_operation(clip: torch.Tensor, name: str, level: float, fill: Sequence[float]) -> torch.Tensor:
    """One RandAugment operation.

    Statistics (auto_contrast, equalize, contrast) are those of each frame.

    Args:
        clip: (T, C, H, W) uint8.
        name: one of RAND_AUGMENT_OPS.
        level: strength in 0..1 (magnitude / 10), in -1..1 for SIGNED_OPS.
        fill: colour of what comes in from outside the frame, three numbers in 0..255.

    Returns:
        Same shape and type.
    """
    if name == "auto_contrast":
        return F.autocontrast(clip)
    if name == "equalize":
        return F.equalize(clip)
    if name == "invert":
        return F.invert(clip)
    if name == "posterize":
        return F.posterize(clip, max(1, 4 - int(4 * level)))
    if name == "solarize":
        threshold = 256 - int(256 * level)
        return F.solarize(clip, threshold) if threshold <= 255 else clip
    if name == "solarize_add":
        return torch.where(clip < 128, clip + int(110 * level), clip)
    if name in ("color", "contrast", "brightness", "sharpness"):
        factor = max(0.1, 1 + 0.9 * level)
        if name == "color":
            return F.adjust_saturation(clip, factor)
        if name == "contrast":
            return F.adjust_contrast(clip, factor)
        if name == "brightness":
            return F.adjust_brightness(clip, factor)
        return F.adjust_sharpness(_channels_last(clip), factor)
    angle, shift, shear = 0.0, [0.0, 0.0], [0.0, 0.0]
    if name == "rotate":
        angle = 30 * level
    elif name == "translate_x":
        shift[0] = round(0.45 * level * clip.shape[-1])
    elif name == "translate_y":
        shift[1] = round(0.45 * level * clip.shape[-2])
    elif name in ("shear_x", "shear_y"):
        shear["xy".index(name[-1])] = math.degrees(math.atan(0.3 * level))
    else:
        raise ValueError(f"no operation {name!r}; there are: {', '.join(RAND_AUGMENT_OPS)}")
    # Shears keep the upper left corner in place, rotations the centre.
    center = None if name == "rotate" else [0.0, 0.0]
    return F.affine(clip, angle, shift, 1.0, shear, InterpolationMode.BILINEAR, list(fill), center)


@dataclass(frozen=True)
class RandAugment:
    """n random operations of magnitude m on a clip (Cubuk et al. 2019, arXiv 1909.13719), timm's variant.

    With the defaults this is timm's `rand-m7-n4-mstd0.5-inc1`, which MViT trains with: n operations are drawn
    with replacement, each is carried out with a probability, at a magnitude drawn from a normal distribution
    around m and cut to 0..10. At magnitude 10 (in between proportionally): rotate 30 degrees, shear 0.3,
    translate 0.45 of the side, posterize to 1 bit (from 4), solarize all (from none), solarize_add 110 to
    values below 128, color, contrast, brightness and sharpness by a factor of 1.9 or 0.1; auto_contrast,
    equalize and invert have no magnitude. Nothing mirrors a clip or turns it by more than 30 degrees, so
    classes that are directions (Something-Something) keep their labels.

    Differences to timm's: what comes in from outside is the mean colour, interpolation always bilinear,
    translations are whole pixels. The original paper and torchvision count m in 0..30, without probability,
    and so does imgaug's, which Video-Swin trains with (its n=4, m=7 are milder operations, more often, after
    mirroring every other clip whatever else is set).

    Args:
        n: operations per clip.
        m: magnitude in 0..10.
        std: standard deviation of the magnitude.
        probability: of carrying out each operation.

    Raises:
        ValueError: values out of range; all faults at once.
    """

    n: int = 4
    m: float = 7.0
    std: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if not is_integer(self.n) or self.n < 1:
            faults.append(f"n must be a whole number, at least 1, got {self.n!r}; null switches it off")
        for name, top in (("m", MAX_MAGNITUDE), ("std", MAX_MAGNITUDE), ("probability", 1.0)):
            faults += _out_of_range(name, getattr(self, name), 0.0, top)
        if faults:
            raise ValueError("; ".join(faults))

    def __call__(self, clip: torch.Tensor, fill: Sequence[float], rng: np.random.Generator) -> torch.Tensor:
        """(T, C, H, W) uint8 -> same; `fill` as for `apply_operation`."""
        for index in rng.integers(len(RAND_AUGMENT_OPS), size=self.n).tolist():
            if rng.random() >= self.probability:
                continue
            name = RAND_AUGMENT_OPS[index]
            magnitude = min(MAX_MAGNITUDE, max(0.0, rng.normal(self.m, self.std)))
            sign = -1 if name in SIGNED_OPS and rng.random() < 0.5 else 1
            clip = apply_operation(clip, name, sign * magnitude / MAX_MAGNITUDE, fill)
        return clip


@dataclass(frozen=True)
class RandomErasing:
    """Covers a random rectangle of a clip, the same in all frames (Zhong et al. 2017, arXiv 1708.04896).

    On uint8 frames, where the rest of the randomness of a clip is drawn: so it is a function of seed, epoch
    and video and not of the batch, the process or the device. Noise is what timm, MViT and Video-Swin fill
    in after normalisation (normal, of mean 0 and standard deviation 1), seen before it: of the mean and
    standard deviation of each colour, cut to 0..255. Difference to theirs: one pattern for all frames, so
    that it does not flicker.

    Args:
        probability: of covering anything.
        area: share of the frame, smallest and largest.
        aspect: height / width, smallest and largest; drawn uniformly in its logarithm.
        fill: "noise" (each pixel for itself) or "mean" (the mean colour).
        boxes: at most so many rectangles, their number drawn evenly from 1; they share the area (timm's
            "recount").

    Raises:
        ValueError: values out of range; all faults at once.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: Fill = "noise"
    boxes: int = 1

    def __post_init__(self) -> None:
        faults = _out_of_range("probability", self.probability, 0.0, 1.0)
        for name, top in (("area", 1.0), ("aspect", math.inf)):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= top:
                limit = f" <= {top:g}" if top < math.inf else ""
                faults.append(f"{name} must be [low, high] with 0 < low <= high{limit}, got {list(pair)}")
        if self.fill not in get_args(Fill):
            faults.append(f"fill must be {' or '.join(get_args(Fill))}, got {self.fill!r}")
        if not is_integer(self.boxes) or self.boxes < 1:
            faults.append(f"boxes must be a whole number, at least 1, got {self.boxes!r}")
        if faults:
            raise ValueError("; ".join(faults))

    def __call__(
        self, clip: torch.Tensor, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator
    ) -> torch.Tensor:
        """(T, C, H, W) uint8 -> same; `mean` and `std` of the colours in 0..255."""
        if rng.random() >= self.probability:
            return clip
        count = 1 if self.boxes == 1 else int(rng.integers(1, self.boxes + 1))
        for _ in range(count):
            clip = self._cover(clip, 1 / count, mean, std, rng)
        return clip

    def _cover(
        self,
        clip: torch.Tensor,
        share: float,
        mean: Sequence[float],
        std: Sequence[float],
        rng: np.random.Generator,
    ) -> torch.Tensor:
        height, width = clip.shape[-2:]
        for _ in range(10):
            area = height * width * rng.uniform(*self.area) * share
            aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                break
        else:
            return clip  # as timm's: nothing fits
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        values = np.broadcast_to(np.asarray(mean, np.float64), (h, w, 3))
        if self.fill == "noise":
            values = values + np.asarray(std) * rng.standard_normal((h, w, 3))
        pixels = torch.from_numpy(values.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
        return F.erase(clip, top, left, h, w, pixels)


def gaussian_blur(clip: torch.Tensor, sigma: float) -> torch.Tensor:
    """(T, C, H, W) uint8 blurred with a standard deviation of `sigma` pixels, cut off at three of them."""
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in clip.shape[-2:]))
    return F.gaussian_blur(_channels_last(clip), [2 * reach + 1] * 2, [sigma, sigma])


def adjust_hue(clip: torch.Tensor, shift: float) -> torch.Tensor:
    """(T, C, H, W) uint8 with its colours turned by `shift` turns of the colour circle, in -0.5..0.5.

    What torchvision's `adjust_hue` computes, rounded where that one rounds down, in 0.4 of its time: hue is
    by far the dearest part of a colour jitter. With hue h in sextants, a colour is the pixel's smallest value
    plus its chroma times a piecewise linear function of h, which needs neither cases nor saturation.
    """
    out = torch.empty_like(clip)
    for frame, target in zip(clip, out, strict=True):  # one frame stays in the cache
        red, green, blue = frame.float().unbind(0)
        low, high = (x.float() for x in torch.aminmax(frame, dim=0))
        chroma = high - low
        of_green = (blue - red).add_(chroma, alpha=2)
        of_blue = (red - green).add_(chroma, alpha=4)
        hue = torch.where(high == red, green - blue, torch.where(high == green, of_green, of_blue))
        hue = hue.div_(chroma.clamp(min=1)).add_(6 * shift)
        hue = hue.sub_(hue.div(6).floor_(), alpha=6)
        ramps = ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
        low += 0.5  # what follows rounds down
        for plane, ramp in zip(target, ramps, strict=True):
            plane.copy_(torch.addcmul(low, chroma, ramp.clamp_(0, 1)))
    return out


def _channels_last(clip: torch.Tensor) -> torch.Tensor:
    """Small convolutions of colour planes cost several times as much."""
    return clip.contiguous(memory_format=torch.channels_last)


def _out_of_range(name: str, value: float, low: float, high: float) -> list[str]:
    good = is_number(value) and low <= value <= high
    return [] if good else [f"{name} must lie in {low:g}..{high:g}, got {value!r}"]
