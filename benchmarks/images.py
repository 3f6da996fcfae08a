"""What a batch of pictures costs: ours, torchvision's ImageFolder with v2, bare decoding.

    python benchmarks/images.py                # a minute
    python benchmarks/images.py --size 1060 1415 --pictures 16
    python benchmarks/images.py --pictures 8 --repetitions 1 --json out.json

JPEG files of 500 x 375 pixels, as ImageNet's usually are, with the recipe's crops: of training a random part
(area 0.08-1) at 224 and a flip, of evaluation the short side at 256 and 224 of the centre, bicubic. One
interleaved run: in each repetition all contenders read the same batches of 8 one after the other, and ratios
are taken within a repetition. One thread, no workers. Time is that of the processor, of this process and the
one that reads for it (Linux); of the clock it is the same on an idle machine, since one waits for the other.

Contenders:

* ours: the data sets of `data=imagefolder`, collated as workers do it, uint8;
* v2_pil: `ImageFolder`, v2 transforms on Pillow's picture, then `PILToTensor`, collated;
* v2_tensor: the same with `PILToTensor` first, antialiased;
* floor: Pillow decodes to RGB, nothing else.

It also says how far the pixels of theirs are from ours: of the parts that training draws, resized, and of
the views of an evaluation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from processes import cpu_seconds
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from dtf.data.dataset import collate
from dtf.data.sets.imagefolder import ImageFolderDataModule
from dtf.data.storage import open_video

BATCH = 8
CUBIC = InterpolationMode.BICUBIC
STAGES = ("train", "val")


class Contenders(NamedTuple):
    """`batches`: what reads the pictures of these numbers, by name; `ours` and `theirs`: data sets."""

    batches: dict[str, Callable[[Sequence[int]], object]]
    ours: Any
    theirs: dict[str, ImageFolder]


def write_pictures(root: Path, count: int, size: Sequence[int]) -> None:
    """ROOT/{train,val}/{a,b}/N.jpg of (height, width) pixels: smooth texture with noise, quality 90."""
    source = np.random.default_rng(0)
    for i in range(count):
        coarse = torch.from_numpy(source.random((1, 3, 24, 32)) * 255)
        smooth = torch.nn.functional.interpolate(coarse, tuple(size), mode="bicubic")[0]
        smooth = smooth.permute(1, 2, 0).numpy()
        pixels = np.clip(smooth + source.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        for stage in STAGES:
            path = root / stage / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)


def contenders(root: Path, stage: str) -> Contenders:
    """What reads the pictures of a stage."""
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
    if stage == "train":
        steps = [v2.RandomResizedCrop(224, interpolation=CUBIC, antialias=True), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(256, interpolation=CUBIC, antialias=True), v2.CenterCrop(224)]
    orders = {"v2_pil": [*steps, v2.PILToTensor()], "v2_tensor": [v2.PILToTensor(), *steps]}
    theirs = {name: ImageFolder(str(root / stage), v2.Compose(order)) for name, order in orders.items()}
    paths = [path for path, _ in theirs["v2_pil"].samples]

    def floor(i: int) -> object:
        with Image.open(paths[i]) as picture:
            return np.asarray(picture.convert("RGB"))

    def reads(read: Callable[[int], Any], join: Callable[[Any], object]) -> Callable[[Sequence[int]], object]:
        return lambda numbers: join([read(i) for i in numbers])

    batches = {"ours": reads(ours.__getitem__, collate)}
    batches |= {name: reads(one.__getitem__, default_collate) for name, one in theirs.items()}
    return Contenders(batches | {"floor": reads(floor, list)}, ours, theirs)


def measure(
    readers: dict[str, Callable[[Sequence[int]], object]], pictures: int, repetitions: int
) -> dict[str, dict[str, float]]:
    """For each reader "ms" a picture and "ratio" to ours, medians over repetitions."""
    batches = [range(first, min(first + BATCH, pictures)) for first in range(0, pictures, BATCH)]
    for read in readers.values():
        read(batches[0])
    means: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repetitions):
        spent = dict.fromkeys(readers, 0.0)
        for numbers in batches:
            for name, read in readers.items():
                start = cpu_seconds()
                read(numbers)
                spent[name] += cpu_seconds() - start
        for name, seconds in spent.items():
            means[name].append(1000 * seconds / pictures)
    return {
        name: {
            "ms": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, means["ours"], strict=True)),
        }
        for name, values in means.items()
    }


def differences(stage: str, found: Contenders, pictures: int) -> dict[str, int]:
    """The largest difference of a pixel to ours, of 0..255, by contender."""
    largest = dict.fromkeys(found.theirs, 0)
    rng = np.random.default_rng(0)
    for i in range(pictures):
        path = found.ours.index.path(i)
        if stage == "val":
            ours = found.ours[i]["video"][0, 0].permute(2, 0, 1)
            views = {name: theirs[i][0] for name, theirs in found.theirs.items()}
        else:
            with open_video(path) as reader, Image.open(path) as picture:
                [frame] = reader.read([0])
                box = found.ours.transform.draw_box(*frame.shape[1:], rng)
                ours = found.ours.transform.crop_frame(frame, box, "bicubic")
                whole = {"v2_pil": picture, "v2_tensor": F.pil_to_tensor(picture)}
                views = {name: F.resized_crop(x, *box, [224, 224], CUBIC) for name, x in whole.items()}
            views["v2_pil"] = F.pil_to_tensor(views["v2_pil"])
        for name, view in views.items():
            largest[name] = max(largest[name], int((view.int() - ours.int()).abs().max()))
    return largest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), args.pictures, args.size)
        for stage in STAGES:
            found = contenders(Path(folder), stage)
            report[stage] = measure(found.batches, args.pictures, args.repetitions)
            for name, largest in differences(stage, found, args.pictures).items():
                report[stage][name]["largest_difference"] = largest
    print(f"torch {torch.__version__}, Pillow {PIL.__version__}, {args.size[1]} x {args.size[0]} pixels")
    print("| stage | contender | ms a picture | time / ours | largest difference |")
    print("|---|---|---|---|---|")
    for stage, figures in report.items():
        for name, f in figures.items():
            difference = f.get("largest_difference", "")
            print(f"| {stage} | {name} | {f['ms']:.2f} | {f['ratio']:.2f} | {difference} |")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
