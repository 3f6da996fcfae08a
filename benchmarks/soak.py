"""Soak test of the loader: memory flat, no file left open, throughput, over many thousand clips.

    python benchmarks/soak.py                                  # 20,000 clips, a minute or two on two cores
    python benchmarks/soak.py --clips 2000 --workers 2         # a shorter look
    python benchmarks/soak.py --root DIR                       # your own videos, DIR/CLASS/*.mp4

Clips go through the data module as in training: random windows, crops, colour, time limit, workers, batches.
Among the generated videos are broken ones of several kinds, so that every way out of the reader is walked.
The main process does nothing between batches, so the share of time that it waits is near one here; training
logs the same figure as `train/data_wait`.

Passes when the resident memory of all processes together is at most 5 % higher in the last quarter than in
the first (pages of files, which the kernel drops as it likes, left out; shared pages counted once), and no
process has more open files after the last epoch than after the first. The exit code says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from processes import family

from dtf.data.datamodule import VideoDataModule

NUM_VIDEOS = 200
NUM_BROKEN = 10
MAX_GROWTH = 0.05


def write_videos(root: Path) -> None:
    """ROOT/train/{a,b}/*: small videos of different codecs, lengths and sizes, one in twenty broken."""
    rng = np.random.default_rng(0)
    kinds = [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")]
    for i in range(NUM_VIDEOS):
        codec, extension = kinds[i % 20 % len(kinds)] if i % 20 < 12 else kinds[0]
        folder = root / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{i:03d}.{extension}"
        width, height = (int(side) for side in rng.choice([(96, 72), (128, 96), (72, 96)]))
        noise = rng.integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
        smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(noise).float().permute(2, 0, 1), 9, 1, 4)
        texture = smooth.permute(1, 2, 0).to(torch.uint8).numpy()
        options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            for t in range(int(rng.integers(8, 64))):
                y, x = t % height, 2 * t % width
                picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        if i % (NUM_VIDEOS // NUM_BROKEN) == 0:
            data = path.read_bytes()
            broken = (b"", data[: len(data) // 2], b"<html>" * 100, data[:2000] + bytes(len(data)))
            path.write_bytes(broken[i // (NUM_VIDEOS // NUM_BROKEN) % len(broken)])


def memory_mb() -> float:
    """Resident memory of this process and its children in MiB, without pages of files."""
    total = 0
    for process in family():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1])
    return total / 1024


def open_files() -> dict[int, int]:
    """Open file descriptors by process."""
    return {process: len(os.listdir(f"/proc/{process}/fd")) for process in family()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="pixels")
    parser.add_argument("--root", type=Path, default=None, help="folder with CLASS/*.mp4; default: generated")
    args = parser.parse_args(argv)
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("the soak test reads /proc and needs Linux")

    with tempfile.TemporaryDirectory() as scratch:
        if args.root is None:
            root, split = Path(scratch), "train"
            write_videos(root)
        else:
            root, split = args.root, "."
        data = VideoDataModule(
            root,
            splits={"train": split, "val": None, "test": None},
            clip_length=8,
            frame_stride=2,
            crop_px=args.crop,
            batch_size=args.batch,
            num_workers=args.workers,
            augment={"brightness": 0.2, "saturation": 0.2},
        )
        loader = data.train_dataloader()
        print(
            f"torch {torch.__version__}, av {av.__version__}, {os.cpu_count()} cores, {args.workers} workers"
        )
        print(
            f"{len(data.index('train'))} videos, {args.clips} clips of 8 frames, {args.crop} px", flush=True
        )

        clips = batches = epoch = replaced = 0
        reasons: set[str] = set()
        samples: list[float] = []
        files_before: dict[int, int] = {}
        waiting = measuring = 0.0
        every = max(1, args.clips // args.batch // 80)
        started = time.perf_counter()
        while clips < args.clips:
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
            asked = time.perf_counter()
            for batch in loader:
                waiting += time.perf_counter() - asked
                clips += len(batch["label"])
                batches += 1
                for videos in filter(None, batch["error"]):
                    replaced += 1
                    reasons.update(video.path for video in videos)
                del batch
                if batches % every == 0:
                    now = time.perf_counter()
                    samples.append(memory_mb())
                    if len(samples) % 10 == 0:
                        print(f"{clips:7} clips  {samples[-1]:8.1f} MiB", flush=True)
                    measuring += time.perf_counter() - now
                asked = time.perf_counter()
            epoch += 1
            # Between epochs no batch is under way: each one in flight holds an open file.
            files_after = open_files()
            files_before = files_before or files_after
        seconds = time.perf_counter() - started - measuring

    quarter = len(samples) // 4
    # The start is warming up: each worker loads its codecs and its allocator finds its size.
    first, last = statistics.median(samples[quarter // 4 : quarter]), statistics.median(samples[-quarter:])
    leaked = {p: n - files_before[p] for p, n in files_after.items() if n > files_before.get(p, n)}
    growth = last / first - 1
    opened = [sum(files.values()) for files in (files_before, files_after)]
    print(f"memory       {first:.1f} MiB in the first quarter, {last:.1f} in the last ({growth:+.1%})")
    print(f"open files   {opened[0]} after the first of {epoch} epochs, {opened[1]} after the last")
    print(f"throughput   {clips / seconds:.1f} clips/s, data wait {waiting / seconds:.1%}")
    print(f"replaced     {replaced} clips of {len(reasons)} broken videos")
    return 0 if growth <= MAX_GROWTH and not leaked else 1


if __name__ == "__main__":
    sys.exit(main())
