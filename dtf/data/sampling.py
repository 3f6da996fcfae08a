"""Which frames make a clip: pure functions from (number of frames, fps, random source) to frame indices.

Conventions, where the field has several (see `FrameSampler` for the choice between them):

* dense: a window of L = clip_length * frame_stride frames, as SIFA / DTF, TAdaConv and SlowFast count it. The
  start of a training window is uniform over 0..N-L. Test clip k of n starts at k * (N-L) / (n-1) (mmaction2)
  or, with endpoint=False, at k * (N-L) / n (SIFA / DTF, TAdaConv, SlowFast). A single test clip is central.
* interval (TAdaConv, SlowFast): the same window, whose start may lie between frames; clip_length places are
  spread evenly over it from its first to its last frame, so that they are more than frame_stride apart.
* segment (TSN): the video is cut into clip_length segments of N / clip_length frames (TSM).
  Training takes a random frame of each, test clip k of n the frame at (k + 1/2) / n of each: for n = 1 the
  middle frame.
* point (TAdaConv): the same segments. Training takes a random place in each, test clip k of n that at
  (k + 1) / n of each, for n = 1 the middle; of places the nearest frame.
* uniform: frames N / clip_length apart. Training draws one phase for the whole clip, so that the frames stay
  evenly spaced; test clips have the phases (k + 1/2) / n, like segment.

Fractions are rounded down but for point. Shape letters: T frames of a clip, N frames of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Scheme = Literal["dense", "interval", "segment", "point", "uniform"]
Short = Literal["loop", "clamp"]


def dense_indices(start: int, clip_length: int, stride: float) -> np.ndarray:
    """Frames start, start + stride, ... without limit: (T,) int64; fractions are rounded down each time."""
    return start + np.floor(np.arange(clip_length) * stride + 1e-9).astype(np.int64)


def dense_starts(num_frames: int, window: int, num_clips: int, endpoint: bool = True) -> np.ndarray:
    """Starts of the test windows: (num_clips,) int64, from 0 to num_frames - window.

    Args:
        num_frames: frames of the video.
        window: frames that one clip spans; longer than the video means that every clip starts at 0.
        num_clips: how many.
        endpoint: whether the last of several clips ends with the video (as in `numpy.linspace`).
    """
    room = max(0, num_frames - window)
    if num_clips == 1:
        return np.array([room // 2], dtype=np.int64)
    return np.arange(num_clips, dtype=np.int64) * room // (num_clips - 1 if endpoint else num_clips)


def segment_indices(num_frames: int, clip_length: int, phases: np.ndarray | float) -> np.ndarray:
    """One frame of each of `clip_length` equal segments: (T,) int64.

    Args:
        num_frames: frames of the video; fewer than clip_length repeat frames evenly.
        clip_length: T.
        phases: place within the segment in [0, 1), one for all or one for each segment.
    """
    places = (np.arange(clip_length) + phases) * num_frames / clip_length
    return np.minimum(np.floor(places + 1e-9).astype(np.int64), num_frames - 1)


def interval_indices(start: float, clip_length: int, window: float) -> np.ndarray:
    """Frames from `start` to `start` + `window` - 1, evenly spread, without limit: (T,) int64."""
    return np.linspace(start, start + window - 1, clip_length).clip(min=0).astype(np.int64)


def point_indices(num_frames: int, clip_length: int, phases: np.ndarray | float) -> np.ndarray:
    """As `segment_indices`, but of each place the nearest frame, the even one of two as near."""
    places = np.arange(clip_length) * (num_frames / clip_length) + phases * (num_frames / clip_length)
    return np.minimum(np.round(places).astype(np.int64), num_frames - 1)


def bound_indices(indices: np.ndarray, num_frames: int, short: Short) -> np.ndarray:
    """Indices past the end: start over ("loop") or stay on the last frame ("clamp")."""
    return indices % num_frames if short == "loop" else np.minimum(indices, num_frames - 1)


@dataclass(frozen=True)
class FrameSampler:
    """Chooses the frames of training and test clips.

    Args:
        clip_length: T, frames of a clip.
        frame_stride: distance of neighbouring frames, for "dense" and "interval" only.
        scheme: "dense", "interval", "segment", "point" or "uniform" (see the head of this file).
        short: what a dense window longer than the video does: "loop" (start over) or "clamp" (repeat the last
            frame), as does one of "interval". The other schemes spread a short video evenly.
        target_fps: dense and interval only: stride in frames of a video of this rate, so that a clip covers
            the same time
            whatever the rate of its file (SlowFast, TAdaConv: 30). None: stored frames (SIFA / DTF,
            mmaction2).
        endpoint: dense and interval only: whether the last of several test clips ends with the video.

    Raises:
        ValueError: an unknown scheme or a number out of range; all faults at once.
    """

    clip_length: int
    frame_stride: int = 1
    scheme: Scheme = "dense"
    short: Short = "loop"
    target_fps: float | None = None
    endpoint: bool = True

    def __post_init__(self) -> None:
        faults = []
        if self.clip_length < 1:
            faults.append(f"clip_length must be at least 1, got {self.clip_length}")
        if self.frame_stride < 1:
            faults.append(f"frame_stride must be at least 1, got {self.frame_stride}")
        if self.scheme not in get_args(Scheme):
            faults.append(f"scheme must be one of {', '.join(get_args(Scheme))}, got {self.scheme!r}")
        if self.short not in get_args(Short):
            faults.append(f"short must be one of {', '.join(get_args(Short))}, got {self.short!r}")
        if self.target_fps is not None and self.target_fps <= 0:
            faults.append(f"target_fps must be positive or null, got {self.target_fps}")
        if faults:
            raise ValueError("frame sampling: " + "; ".join(faults))

    def train(self, num_frames: int, fps: float, rng: np.random.Generator) -> np.ndarray:
        """A random clip: (T,) int64 frame indices in 0..num_frames-1.

        Args:
            num_frames: frames of the video, at least 1.
            fps: its frames per second (used with target_fps only; a still needs none).
            rng: source of all randomness.
        """
        if self.scheme == "dense":
            stride, window = self._stride_and_window(num_frames, fps)
            start = int(rng.integers(max(0, num_frames - window) + 1))
            return bound_indices(dense_indices(start, self.clip_length, stride), num_frames, self.short)
        if self.scheme == "interval":
            span = self.clip_length * self._stride(num_frames, fps)
            place = rng.random() * max(0.0, num_frames - span)
            return bound_indices(interval_indices(place, self.clip_length, span), num_frames, self.short)
        if self.scheme == "point":
            return point_indices(num_frames, self.clip_length, rng.random(self.clip_length))
        phases = rng.random(self.clip_length) if self.scheme == "segment" else rng.random()
        return segment_indices(num_frames, self.clip_length, phases)

    def test(self, num_frames: int, fps: float, num_clips: int = 1) -> np.ndarray:
        """The fixed clips of an evaluation: (num_clips, T) int64 frame indices in 0..num_frames-1.

        Args:
            num_frames, fps: as for `train`.
            num_clips: clips per video.
        """
        if self.scheme == "dense":
            stride, window = self._stride_and_window(num_frames, fps)
            starts = dense_starts(num_frames, window, num_clips, self.endpoint)
            clips = [dense_indices(int(start), self.clip_length, stride) for start in starts]
            return bound_indices(np.stack(clips), num_frames, self.short)
        if self.scheme == "interval":
            span = self.clip_length * self._stride(num_frames, fps)
            room = max(0.0, num_frames - span)
            gaps = max(1, num_clips - self.endpoint)
            places = [room / 2] if num_clips == 1 else [room * k / gaps for k in range(num_clips)]
            clips = [interval_indices(place, self.clip_length, span) for place in places]
            return bound_indices(np.stack(clips), num_frames, self.short)
        if self.scheme == "point":
            phases = (np.arange(num_clips) + 1) / num_clips if num_clips > 1 else np.array([0.5])
            return np.stack([point_indices(num_frames, self.clip_length, phase) for phase in phases])
        phases = (np.arange(num_clips) + 0.5) / num_clips
        return np.stack([segment_indices(num_frames, self.clip_length, phase) for phase in phases])

    def needs_fps(self, num_frames: int) -> bool:
        """Whether a video of so many frames cannot be sampled without its rate."""
        return self.scheme in ("dense", "interval") and self.target_fps is not None and num_frames > 1

    def _stride_and_window(self, num_frames: int, fps: float) -> tuple[float, int]:
        stride = self._stride(num_frames, fps)
        return stride, max(1, round(self.clip_length * stride))

    def _stride(self, num_frames: int, fps: float) -> float:
        stride = float(self.frame_stride)
        if self.target_fps is not None and self.needs_fps(num_frames):
            if not fps > 0:
                raise ValueError("has no frame rate, which sampling with target_fps needs")
            stride *= fps / self.target_fps
        return stride


def parse_views(views: str) -> tuple[int, int]:
    """ "NxM" -> (N clips, M crops), M being 1 (centre) or 3 (both ends and the middle of the long side).

    Raises:
        ValueError: anything else.
    """
    clips, _, crops = str(views).lower().partition("x")
    if not (clips.isdecimal() and int(clips) >= 1 and crops in ("1", "3")):
        raise ValueError(
            f"views must be CLIPSxCROPS, at least 1 clip and 1 or 3 crops, for example 10x3; got {views!r}"
        )
    return int(clips), int(crops)
