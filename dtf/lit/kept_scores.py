"""Scores of an evaluation that is under way, in OUTPUT/scores/: what is cut off goes on where it stopped.

`evaluation.json` says what is evaluated. Each process appends to a file of its own (`*.bin`), all numbers
little endian:

    32 bytes              SHA-256 of that description
    for each batch        4 bytes: n; n records; 4 bytes: CRC-32 of the n records
    a record              int64: number of the video; C float64: sums of its views' softmax scores

A batch that was cut short ends its file. Broken videos are not kept: they are read again, so that one that
was repaired counts. A finished evaluation removes the folder.

Letters: V videos, K videos whose scores are kept, C classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dtf.data.datamodule import VideoDataModule
from dtf.data.sampling import parse_views
from dtf.errors import RunError
from dtf.files import explaining, replacing
from dtf.lit.engine import Engine
from dtf.lit.report import shown
from dtf.lit.scores import VideoScores

log = logging.getLogger(__name__)

FOLDER = "scores"
DESCRIPTION = "evaluation.json"
_FORMAT = 1
_LARGEST_DESCRIPTION = 1 << 16


def describe_evaluation(
    checkpoint: Path, network: str, data: VideoDataModule, precision: str
) -> dict[str, Any]:
    """What decides the scores of an evaluation of the stage "test", as plain data.

    Args:
        checkpoint: the file; its bytes count, not its name.
        network: name of the network.
        data: of the videos; where they lie and in which batches they are read does not count.
        precision: of the trainer.
    """
    interpolation = data.view.interpolation or "bilinear"
    # Scores from before there was a choice do not say how frames are resized.
    other_resizing = {} if interpolation == "bilinear" else {"interpolation": interpolation}
    return other_resizing | {
        "format": _FORMAT,
        "checkpoint": _digest_of_files(checkpoint, Path(f"{checkpoint}.data")),
        "network": network,
        "precision": precision,
        "views": data.test_views,
        "classes": data.num_classes,
        "videos": len(data.index("test")),
        "list": data.index("test").digest(),
        "sampling": dataclasses.asdict(data.view.sampler()),
        "crop_px": data.view.crop_px,
        "short_side_px": data.view.crops().resized_px,
        "mean": list(data.view.mean),
        "std": list(data.view.std),
        "decoder": data.decoder,
    }


def _digest_of_files(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():  # large ONNX graphs have their weights in a second one
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class KeptScores:
    """The folder of scores of one evaluation.

    Args:
        folder: OUTPUT/scores.
        evaluation: from `describe_evaluation`.

    Raises:
        RunError: the folder keeps the scores of another evaluation. Nothing is changed.
    """

    def __init__(self, folder: Path, evaluation: Mapping[str, Any]) -> None:
        self.folder = folder
        self._evaluation = evaluation
        self._num_videos, num_classes = evaluation["videos"], evaluation["classes"]
        self.num_views = math.prod(parse_views(evaluation["views"]))
        self._head = hashlib.sha256(json.dumps(evaluation, sort_keys=True).encode()).digest()
        self._record = np.dtype([("video", "<i8"), ("sums", "<f8", (num_classes,))])
        self._file: Path | None = None
        self._check()

    def _check(self) -> None:
        if self.folder.is_symlink():  # files are removed in it
            raise RunError(
                f"{shown(self.folder)} is a link; remove it, or choose another folder (output=DIR)"
            )
        path = self.folder / DESCRIPTION
        if not path.is_file():
            return
        found: Any = None
        if path.stat().st_size <= _LARGEST_DESCRIPTION:
            with suppress(ValueError, RecursionError):
                found = json.loads(path.read_text("utf-8"))
        now = json.loads(json.dumps(self._evaluation))
        if found == now:
            return
        other = "of an unknown kind"
        if isinstance(found, dict):
            keys = [key for key in found | now if found.get(key) != now.get(key)]
            other = "of another evaluation: " + ", ".join(
                f"{key} was {str(found.get(key))[:12]!r}, is {str(now.get(key))[:12]!r}" for key in keys
            )
        raise RunError(
            f"{shown(self.folder)} keeps scores {other}. Choose another folder (output=DIR), or remove "
            f"{shown(self.folder)} to begin anew"
        )

    def begin(self) -> None:
        """Say in the folder what is evaluated. One process does."""
        if not (self.folder / DESCRIPTION).is_file():
            with replacing(self.folder / DESCRIPTION) as file:
                json.dump(self._evaluation, file, indent=2)

    def append(self, videos: np.ndarray, sums: np.ndarray, num_views: np.ndarray) -> None:
        """Write the scores of a batch down.

        Args:
            videos: (n,) int64.
            sums: (n, C) float64, over views.
            num_views: (n,), how many were summed; a video without all its views is left out.

        Raises:
            RunError: no space, no permission, ...
        """
        whole = num_views == self.num_views
        records = np.empty(whole.sum(), self._record)
        records["video"], records["sums"] = videos[whole], sums[whole]
        if not len(records):
            return
        content = records.tobytes()
        frame = _number(len(records)) + content + _number(zlib.crc32(content))
        if self._file is None:
            self._file = self.folder / f"{time.time_ns()}-{os.getpid()}.bin"
            frame = self._head + frame
        with explaining(self._file):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not buffered: a process that is killed has written what it was given.
            with open(self._file, "ab", buffering=0) as file:
                rest = memoryview(frame)
                while rest:
                    rest = rest[file.write(rest) :]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """What is kept: (K,) int64 videos, ascending, and (K, C) float64 sums over their views."""
        found: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.bin")):
            if path.is_file() and not path.is_symlink():
                self._read_file(path, found)
        videos = np.array(sorted(found), np.int64)
        sums = [found[video] for video in videos.tolist()]
        return videos, np.stack(sums) if sums else np.empty((0, self._record["sums"].shape[0]))

    def _read_file(self, path: Path, found: dict[int, np.ndarray]) -> None:
        with open(path, "rb") as file:
            if file.read(len(self._head)) != self._head:
                return
            # A process meets a video twice at most, where the last batch is filled up.
            allowed = 2 * self._num_videos
            while len(head := file.read(4)) == 4:
                num = int.from_bytes(head, "little")
                if not 0 < num <= allowed:
                    return
                allowed -= num
                content = file.read(num * self._record.itemsize)
                if len(content) < num * self._record.itemsize or file.read(4) != _number(zlib.crc32(content)):
                    return
                records = np.frombuffer(content, self._record)
                for video, sums in zip(records["video"].tolist(), records["sums"], strict=True):
                    # NaN fails, too.
                    if 0 <= video < self._num_videos and (sums >= 0).all() and self._add_up(sums):
                        found.setdefault(video, sums)

    def _add_up(self, sums: np.ndarray) -> bool:
        return bool(abs(sums.sum() - self.num_views) < 1e-3 * self.num_views)

    def remove(self) -> None:
        """Remove the folder of an evaluation that is finished."""
        with explaining(self.folder):
            for path in [*self.folder.glob("*.bin"), self.folder / DESCRIPTION]:
                path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def summary(self) -> str:
        """How far the evaluation is, and how to go on with it."""
        return (
            f"scores of {len(self.read()[0])} of {self._num_videos} videos are kept; the same command with "
            f"output={shown(self.folder.parent)} goes on with the others"
        )


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")


class KeepScores(Callback):
    """Reads only the videos whose scores are not kept yet, and keeps theirs as they come.

    Args:
        kept: where.
    """

    def __init__(self, kept: KeptScores) -> None:
        self.kept = kept

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out what is missing; the first process decides for all."""
        # Nothing is missing where only the page was not written.
        warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
        assert isinstance(pl_module, Engine)
        data: VideoDataModule = getattr(trainer, "datamodule")  # noqa: B009 - Lightning does not declare it
        videos, sums = self.kept.read()
        videos = trainer.strategy.broadcast(videos)
        data.leave_out("test", videos)
        scores = pl_module.collectors["test"]
        assert isinstance(scores, VideoScores)
        scores.keep = self.kept.append
        if trainer.is_global_zero and len(videos):
            labels = data.index("test").labels
            num_views = np.full(len(videos), self.kept.num_views)
            scores.known = (videos, labels[videos], sums, num_views, {})
            log.info("scores of %d of %d videos are there already", len(videos), len(labels))
