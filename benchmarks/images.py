"""Pictures per second of one loading process: ours, torchvision's ImageFolder with v2, bare decoding.

    python benchmarks/images.py                # half a minute
    python benchmarks/images.py --pictures 8 --repetitions 1 --json out.json

JPEG files of 500 x 375 pixels, as ImageNet's usually are, with the recipe's crops: of training a random part
(area 0.08-1) at 224 and a flip, of evaluation the short side at 256 and 224 of the centre, bicubic. One
interleaved run: in each repetition all contenders read the same picture one after the other, and ratios are
taken within a repetition. Time is that of the clock: ours are read in a process of their own, whose time is
not the caller's. One thread, no workers.

Contenders:

* ours: the data sets of `data=imagefolder`, a sample as workers hand it out, uint8;
* v2_pil: `ImageFolder`, v2 transforms on Pillow's picture, then `PILToTensor`;
* v2_tensor: the same with `PILToTensor` first, antialiased;
* floor: Pillow decodes to RGB, nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from dtf.data.sets.imagefolder import ImageFolderDataModule

SIZE = (375, 500)
STAGES = ("train", "val")


def write_pictures(root: Path, count: int) -> None:
    """ROOT/{train,val}/{a,b}/N.jpg: smooth texture with noise, quality 90."""
    source = np.random.default_rng(0)
    for i in range(count):
        coarse = torch.from_numpy(source.random((1, 3, 24, 32)) * 255)
        smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")[0].permute(1, 2, 0).numpy()
        pixels = np.clip(smooth + source.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        for stage in STAGES:
            path = root / stage / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)


def contenders(root: Path, stage: str) -> dict[str, Callable[[int], object]]:
    """What reads picture i of a stage, by name."""
    augment = {"scale": [0.08, 1.0], "interpolation": "bicubic"}
    data = ImageFolderDataModule(
        root,
        splits={"test": "test"},
        clip_length=1,
        short_side_px=256,
        interpolation="bicubic",
        augment=augment,
        num_workers=0,
    )
    data.setup("fit")
    ours = (data.train_dataloader() if stage == "train" else data.val_dataloader()).dataset
    cubic = InterpolationMode.BICUBIC
    if stage == "train":
        steps = [v2.RandomResizedCrop(224, interpolation=cubic, antialias=True), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(256, interpolation=cubic, antialias=True), v2.CenterCrop(224)]
    on_pil = ImageFolder(str(root / stage), v2.Compose([*steps, v2.PILToTensor()]))
    on_tensor = ImageFolder(str(root / stage), v2.Compose([v2.PILToTensor(), *steps]))

    def floor(i: int) -> object:
        with Image.open(on_pil.samples[i][0]) as picture:
            return np.asarray(picture.convert("RGB"))

    return {"ours": ours.__getitem__, "v2_pil": on_pil.__getitem__, "v2_tensor": on_tensor.__getitem__} | {
        "floor": floor
    }


def measure(
    readers: dict[str, Callable[[int], object]], pictures: int, repetitions: int
) -> dict[str, dict[str, float]]:
    """For each reader "ms" a picture and "ratio" to ours, medians over repetitions."""
    for read in readers.values():
        read(0)
    means: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repetitions):
        spent = dict.fromkeys(readers, 0.0)
        for i in range(pictures):
            for name, read in readers.items():
                start = time.perf_counter()
                read(i)
                spent[name] += time.perf_counter() - start
        for name, seconds in spent.items():
            means[name].append(1000 * seconds / pictures)
    return {
        name: {
            "ms": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, means["ours"], strict=True)),
        }
        for name, values in means.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), args.pictures)
        found = {
            stage: measure(contenders(Path(folder), stage), args.pictures, args.repetitions)
            for stage in STAGES
        }
    print("| stage | contender | ms a picture | pictures / s | time / ours |")
    print("|---|---|---|---|---|")
    for stage, figures in found.items():
        for name, f in figures.items():
            print(f"| {stage} | {name} | {f['ms']:.2f} | {1000 / f['ms']:.0f} | {f['ratio']:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
