"""The generated data set `motion`: real H.264 files whose classes only the order of frames can tell apart.

Ten classes in five pairs. A clip of the second class of a pair is a clip of the first, drawn afresh and
played backwards. So any single frame, and any unordered set of frames, is equally likely under both: a
network that averages over frames stays at one half within a pair, however good it is at textures.

    translate_right | translate_left     the scene shifts
    translate_down  | translate_up
    grow            | shrink             the scene scales
    rotate_cw       | rotate_ccw         the scene turns
    bright_then_dark | dark_then_bright  the scene stands still; two discs flash far apart in time

The last pair needs long-range temporal modelling: its two events lie 11 to 17 frames apart.

Shape letters: N frames, H = W = SIZE_PX pixels.
"""

import logging
import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track

from dtf.data.clip_view import STAGES
from dtf.data.datamodule import VideoDataModule
from dtf.data.h264 import write_h264
from dtf.data.lists import raise_faults
from dtf.data.sets.made import make_once
from dtf.data.settings import known
from dtf.values import is_integer

log = logging.getLogger(__name__)

PAIRS = (
    ("translate_right", "translate_left"),
    ("translate_down", "translate_up"),
    ("grow", "shrink"),
    ("rotate_cw", "rotate_ccw"),
    ("bright_then_dark", "dark_then_bright"),
)
CLASS_NAMES = sorted(name for pair in PAIRS for name in pair)
DISTANT_ORDER_PAIR = PAIRS[-1]

SIZE_PX = 64
NUM_FRAMES = 24
FPS = 12
TEXTURE_PX = 160
# Part of the manifest: raise it when the pictures change, so that old files are not mistaken for new ones.
VERSION = 1


def render_clip(class_name: str, generator: torch.Generator) -> torch.Tensor:
    """Draw one clip.

    Args:
        class_name: one of `CLASS_NAMES`.
        generator: every random choice of the clip comes from it.

    Returns:
        uint8 (N, H, W, 3), N = 24, H = W = 64.

    Raises:
        ValueError: an unknown class name.
    """
    for pair in PAIRS:
        if class_name in pair:
            break
    else:
        raise ValueError(f"unknown motion class {class_name!r}; there are: {', '.join(CLASS_NAMES)}")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    time = torch.arange(NUM_FRAMES) / (NUM_FRAMES - 1) - 0.5
    angle = torch.full((NUM_FRAMES,), uniform(0, 2 * math.pi))
    scale = torch.full((NUM_FRAMES,), uniform(0.45, 0.55))
    shift_x, shift_y = torch.zeros(NUM_FRAMES), torch.zeros(NUM_FRAMES)
    centre_x, centre_y = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    # The grid says where in the texture a pixel looks: a scene that shifts right is looked up further left,
    # one that grows is looked up over a shrinking window, and so on.
    motion = pair[0]
    if motion == "translate_right":
        shift_x = -time * uniform(0.35, 0.8)
    elif motion == "translate_down":
        shift_y = -time * uniform(0.35, 0.8)
    elif motion == "grow":
        scale = scale * torch.exp(-time * uniform(0.5, 1.0))
    elif motion == "rotate_cw":
        angle = angle - time * uniform(0.8, 1.8)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Texture position = centre + R(angle) (scale * pixel + shift): shifts are along the picture's axes.
    theta = torch.stack(
        [
            torch.stack([scale * cos, -scale * sin, centre_x + cos * shift_x - sin * shift_y], dim=1),
            torch.stack([scale * sin, scale * cos, centre_y + sin * shift_x + cos * shift_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [NUM_FRAMES, 3, SIZE_PX, SIZE_PX], align_corners=False)
    texture = _texture(generator).expand(NUM_FRAMES, -1, -1, -1)
    video = F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)

    if pair == DISTANT_ORDER_PAIR:
        axis = torch.linspace(-1, 1, SIZE_PX)
        for first_frame, level in ((1, 0.98), (15, 0.02)):
            start = first_frame + int(torch.randint(0, 4, (), generator=generator))
            radius, x, y = uniform(0.25, 0.45), uniform(-0.5, 0.5), uniform(-0.5, 0.5)
            disc = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2
            video[start : start + 4, :, disc] = level

    video = video + 0.02 * torch.randn(video.shape, generator=generator)
    if class_name == pair[1]:
        video = video.flip(0)
    return video.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _texture(generator: torch.Generator) -> torch.Tensor:
    """Smooth coloured noise at three scales, float (1, 3, TEXTURE_PX, TEXTURE_PX), mean 0.5."""
    texture = torch.zeros(1, 3, TEXTURE_PX, TEXTURE_PX)
    for cells, amplitude in ((6, 1.0), (12, 0.8), (24, 0.5)):
        colour = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        grey = torch.rand(1, 1, cells, cells, generator=generator) - 0.5
        texture += amplitude * F.interpolate(
            0.5 * colour + grey, size=(TEXTURE_PX, TEXTURE_PX), mode="bicubic", align_corners=False
        )
    return 0.5 + 0.2 * texture / texture.std()


def generate_motion(root: str | Path, clips_per_class: Mapping[str, int], seed: int = 0) -> Path:
    """Write the data set as ROOT/{train,val,test}/CLASS/NNNNN.mp4, once.

    See `make_once`: a run that was killed leaves nothing that looks finished.

    Args:
        root: the folder to make.
        clips_per_class: split name -> number of clips of each class.
        seed: changes every clip. A clip depends on (seed, split, class, number) alone.

    Returns:
        `root` as a path.

    Raises:
        ValueError: `root` exists and is not this set: other settings, or no motion data at all.
    """
    root = Path(root)
    manifest = {"version": VERSION, "seed": seed, "clips_per_class": dict(clips_per_class)}

    def fill(folder: Path) -> None:
        jobs = []
        for split, count in clips_per_class.items():
            for class_name in CLASS_NAMES:
                (folder / split / class_name).mkdir(parents=True)
                jobs += [(split, class_name, number) for number in range(count)]

        def write(job: tuple[str, str, int]) -> None:
            split, class_name, number = job
            clip_seed = zlib.crc32(f"{seed}/{split}/{class_name}/{number}".encode())
            generator = torch.Generator().manual_seed(clip_seed)
            path = folder / split / class_name / f"{number:05d}.mp4"
            write_h264(path, render_clip(class_name, generator).numpy(), FPS)

        # Drawing and encoding both release the interpreter lock: threads are enough.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            clips = track(
                pool.map(write, jobs),
                total=len(jobs),
                description=f"Writing {root.name} videos",
                disable=not log.isEnabledFor(logging.INFO),
            )
            for _ in clips:
                pass

    make_once(root, "motion", manifest, fill)
    return root


class MotionDataModule(VideoDataModule):
    """The generated data set: writes its videos on first use, then is a folder data set like any other.

    Args:
        root: the folder that the videos are written to.
        clips_per_class: split name -> number of clips of each of the ten classes.
        generation_seed: seed of the videos themselves (`seed` is that of sampling and augmentation).
        **settings: of `VideoDataModule`.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        clips_per_class: Mapping[str, int],
        generation_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.clips_per_class = dict(known(clips_per_class, STAGES, "data.clips_per_class"))
        wrong = [
            f"{stage} must be a whole number of at least 0, got {count!r}"
            for stage, count in self.clips_per_class.items()
            if not is_integer(count) or count < 0
        ]
        raise_faults("data.clips_per_class", wrong)
        self.generation_seed = generation_seed

    def prepare_data(self) -> None:
        """Write the videos, unless they are there (see `generate_motion`)."""
        generate_motion(self.root, self.clips_per_class, self.generation_seed)

    def read_class_names(self) -> list[str]:
        """The ten classes, known before the videos are written."""
        return list(CLASS_NAMES)
