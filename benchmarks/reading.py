"""What a clip costs where a data loader reads it, in this checkout against another one of this repository.

    git worktree add /tmp/before REVISION
    python benchmarks/reading.py /tmp/before
    python benchmarks/reading.py /tmp/before --only bikes kinetics_gop12 --rounds 41

Two processes, one with each checkout's `dtf`, read the same items of the same files (those of
benchmarks/decode.py) in turns:

* decode: 16 frames, stride 4, resized and cropped to 224 px: what benchmarks/decode.py calls ours, dense;
* train: a `DataLoader` with one worker over `TrainDataset` (16 x 4, random crop and flip, 224 px), in
  batches of 8;
* test: the same over `EvalDataset` (ten views at 256 px), a video a batch.

Data sets have the time limit that the configuration sets. Time is CPU time of the process and of all below
it; the ratio is taken within a turn, so that a busy machine hurts both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from processes import cpu_seconds

CLIPS = {"decode": 16, "train": 32, "test": 4}
"""Read in a turn; in a test these are videos."""
BATCH_SIZE = 8
MAX_READ_SECONDS = 60.0


def serve(root: str, name: str) -> None:
    """Read what standard input asks for; answer with the CPU seconds taken."""
    import torch
    from torch.utils.data import DataLoader

    from dtf.data.dataset import EvalDataset, TrainDataset, collate, read_views
    from dtf.data.decode import VideoReader
    from dtf.data.lists import VideoIndex
    from dtf.data.sampling import FrameSampler
    from dtf.data.transforms import TestTransform, TrainTransform

    torch.set_num_threads(1)
    index, sampler = VideoIndex(root, [name], [0]), FrameSampler(16, 4)
    sets = {
        "train": TrainDataset(index, sampler, TrainTransform(224), max_read_seconds=MAX_READ_SECONDS),
        "test": EvalDataset(index, sampler, TestTransform(256, 256), 10, max_read_seconds=MAX_READ_SECONDS),
    }
    items: list[tuple[int, int]] = []
    loaders = {
        kind: DataLoader(
            data,
            BATCH_SIZE if kind == "train" else 1,
            sampler=items,
            num_workers=1,
            collate_fn=collate,
            persistent_workers=True,
        )
        for kind, data in sets.items()
    }
    crops = TestTransform(224, 224).crops
    for line in sys.stdin:
        kind, turn = line.split()
        items[:] = (
            [(int(turn), 0)] * CLIPS[kind]
            if kind == "test"
            else [(int(turn), number) for number in range(CLIPS[kind])]
        )
        before = cpu_seconds()
        if kind == "decode":
            for _, number in items:
                with VideoReader(f"{root}/{name}") as reader:
                    rng = np.random.default_rng((int(turn), number))
                    clips = sampler.train(reader.num_frames, 0.0, rng)[None]
                    read_views(reader, clips, crops, 1, 224)
        else:
            for _ in loaders[kind]:
                pass
        print(cpu_seconds() - before, flush=True)


class Server:
    """`serve` in a process with the `dtf` of a checkout."""

    def __init__(self, checkout: Path, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(path.parent), path.name],
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, kind: str, turn: int) -> float:
        """CPU seconds of a turn."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(kind, turn, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="names of files")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each of the two (default: 21)")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(*args.serve)
        return 0
    if args.before is None or not (args.before / "dtf").is_dir():
        parser.error("give the folder of another checkout of this repository")

    from decode import default_cache, describe_machine, find_files

    for key, value in describe_machine().items():
        print(f"{key:12} {value}")
    here = Path(__file__).resolve().parents[1]
    print(f"\n{'file':20} {'clips':6} {'ms now':>8} {'ms before':>10} {'now / before':>13} {'quartiles':>13}")
    for name, path in find_files(default_cache(), args.only, quick=False).items():
        servers = [Server(checkout.resolve(), path.resolve()) for checkout in (here, args.before)]
        for kind, count in CLIPS.items():
            pairs = []
            for turn in range(args.rounds + 2):
                order = servers if turn % 2 else servers[::-1]
                seconds = {server: server.seconds(kind, turn) for server in order}
                if turn > 1:  # the first ones warm up
                    pairs.append([seconds[server] for server in servers])
            now, before = (statistics.median(column) for column in zip(*pairs, strict=True))
            low, middle, high = statistics.quantiles((a / b for a, b in pairs), n=4)
            print(
                f"{name:20} {kind:6} {now / count * 1e3:8.2f} {before / count * 1e3:10.2f} {middle:13.3f}"
                f"   {low:.3f}-{high:.3f}",
                flush=True,
            )
        for server in servers:
            server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
