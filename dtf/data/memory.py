"""Frames in memory, behind the reading interface of `FrameReader`.

Shape letters: T frames, C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dtf.data import bounds
from dtf.data.reader import FrameReader, VideoError


class ArrayReader(FrameReader):
    """An array as a video. Frames are handed out as they lie there, without a copy.

    Args:
        frames: (T, H, W, 3) uint8 RGB, an array of NumPy (memory-mapped ones too) or a tensor on the CPU.
        fps: frames per second; 0: not known, so that neither target_fps nor windows in seconds can be used.

    Raises:
        VideoError: `frames` is anything else, or its frames are larger than `dtf.data.bounds` allows.
        ValueError: fps is negative or no number.
    """

    path = name = "frames in memory"

    def __init__(self, frames: np.ndarray | torch.Tensor, fps: float = 0.0) -> None:
        kind = str(getattr(frames, "dtype", type(frames).__name__)).removeprefix("torch.")
        shape = tuple(getattr(frames, "shape", ()))
        if kind != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            got = f"{kind} of shape {shape}" if shape else kind
            wanted = "must be uint8 of shape (frames, height, width, 3), RGB"
            raise VideoError(self.path, f"{wanted}, got {got}; a single picture is picture[None]")
        if isinstance(frames, torch.Tensor) and frames.device.type != "cpu":
            raise VideoError(self.path, f"must be on the CPU, got {frames.device}: give frames.cpu()")
        if fault := bounds.frame_fault(shape[2], shape[1]):
            raise VideoError(self.path, fault)
        if not (math.isfinite(fps) and fps >= 0):
            raise ValueError(f"fps must be frames per second, or 0 where it is not known, got {fps}")
        self._frames = np.asarray(frames)
        self.num_frames = len(self._frames)
        self.fps = float(fps)

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`."""
        for index in self._wanted(indices).tolist():
            # torch takes neither frames that run backwards (BGR as RGB) nor, silently, read-only ones; these
            # alone are copied.
            yield index, np.require(self._frames[index], requirements=("C", "W"))
