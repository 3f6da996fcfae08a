"""What every source of frames has in common, whatever it is: `dtf.data.storage.open_video` opens them all.

    video file            `dtf.data.decode.VideoReader`, or another decoder of `dtf.data.decoders`
    frames in a folder    `dtf.data.storage.FrameFolderReader`; in an LMDB: `LmdbReader`
    picture               `dtf.data.pictures.PictureReader`
    array in memory       `dtf.data.memory.ArrayReader`
    file read apart       `dtf.data.isolated.IsolatedReader`

tests/data/test_sources.py says for each of them what it must do.

Shape letters: T frames, C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch

from dtf.data import bounds
from dtf.text import printable


class VideoError(ValueError):
    """A video that cannot be used. Its text is one line, "path: reason".

    Args:
        path: the file (bytes that are not UTF-8 are shown escaped).
        reason: what is wrong with it; kept as an attribute.
    """

    def __init__(self, path: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(f"{printable(path)}: {reason}" if reason else printable(path))


class FrameReader(ABC):
    """Frames of one video by index; use it in a `with` block.

    A source has `path`, `name`, `num_frames` and `fps`, and implements `iter_frames`; the rest follows from
    these. What is wrong with a source is a `VideoError`, when it is opened or when frames are read.

    Attributes:
        path: where the video lies.
        name: its last part, for messages.
        num_frames: number of frames, at least 1.
        fps: mean frames per second; 0 where it is not known.
        errors: damaged packets met so far.
        filled: wanted frames that never came and were replaced by the nearest one.
    """

    path: str
    name: str
    num_frames: int
    fps: float
    errors: int = 0
    filled: int = 0
    _closed = False

    @abstractmethod
    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Decode each of the given frames once and hand it out as soon as it is there.

        Lets a caller shrink frame by frame, so that a clip never exists at its native size.

        Args:
            indices: frame numbers in 0..num_frames-1, repeats are ignored.

        Yields:
            (index, frame), the frame (H, W, C) uint8 RGB, all of one size; by rising index except for
            filled-in frames. It may be memory of the source: not to be written to.

        Raises:
            ValueError: an index is out of range, none is given, or the reader was closed.
            VideoError: too much of what is wanted cannot be decoded.
        """

    def iter_forward(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Like `iter_frames`, strictly by rising index and with the memory of one frame."""
        for index in self._wanted(indices).tolist():
            yield from self.iter_frames([index])

    @property
    def frame_seconds(self) -> np.ndarray | None:
        """Start of each frame in seconds, (num_frames,) float64, the first 0; None where no rate is known.

        Evenly spaced where a source has no time stamps of its own.
        """
        return np.arange(self.num_frames) / self.fps if self.fps > 0 else None

    def close(self) -> None:
        """Free what is open. Calling it again does nothing."""
        self._closed = True

    def read(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Frames at `indices`, in the order and as often as given.

        Args:
            indices: frame numbers in 0..num_frames-1.

        Returns:
            (T, C, H, W) uint8 RGB, in channels_last memory.

        Raises:
            ValueError, VideoError: as `iter_frames`.
            VideoError: the frames together take more than `MAX_CLIP_BYTES`.
        """
        wanted, place = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        frames: dict[int, np.ndarray] = {}
        for index, frame in self.iter_frames(wanted):
            if (num_bytes := len(place) * frame.nbytes) > bounds.MAX_CLIP_BYTES:
                raise VideoError(
                    self.path,
                    f"{len(place)} frames of {frame.shape[1]} x {frame.shape[0]} pixels take {num_bytes} "
                    f"bytes (at most {bounds.MAX_CLIP_BYTES}); read fewer, or one by one with iter_frames",
                )
            frames[index] = frame
        stack = np.stack([frames[i] for i in wanted.tolist()])
        if len(wanted) != len(place) or not np.array_equal(place, np.arange(len(place))):
            stack = stack[place]
        return torch.from_numpy(stack).permute(0, 3, 1, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _wanted(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The given frame numbers, sorted and once each; ValueError: one is out of range, or closed."""
        if self._closed:
            raise ValueError(f"{self.name} was closed; open it again to read from it")
        wanted = np.unique(np.asarray(indices, dtype=np.int64))
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= self.num_frames:
            given = f"{wanted[0]}..{wanted[-1]}" if len(wanted) else "none"
            raise ValueError(f"frame indices must lie in 0..{self.num_frames - 1}, got {given} ({self.name})")
        return wanted
