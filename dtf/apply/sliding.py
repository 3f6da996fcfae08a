"""Windows that slide over a long video, each seen by the network like a video of its own.

The video is decoded once, front to back. Of the windows only those are in memory that the present frame lies
in, cut to the size of the network, so that the length of the video does not matter.

Shape letters: W windows, V = N * M views of one window (N clips, M crops), T frames, S side of the crop.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass

import numpy as np
import torch

from dtf.data.isolated import ReadingProcess
from dtf.data.reader import FrameReader, VideoError
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import TestTransform

_EPSILON_SECONDS = 1e-6


@dataclass(frozen=True)
class Window:
    """A part of a video.

    Attributes:
        start, end: in seconds.
        first, stop: its frames first..stop-1, at least one.
    """

    start: float
    end: float
    first: int
    stop: int

    @property
    def centre(self) -> float:
        """In seconds."""
        return (self.start + self.end) / 2


def slide(reader: FrameReader, window_seconds: float, stride_seconds: float) -> list[Window]:
    """The windows of a video.

    They start at 0, stride, 2 * stride, ... as long as they fit; where that leaves an end over, one more ends
    with the video. A video shorter than a window is one window. A stride of less than a frame counts as one.

    Args:
        reader: of the video.
        window_seconds, stride_seconds: both above 0.

    Raises:
        VideoError: the video has no frame rate.
    """
    times = reader.frame_seconds
    if times is None or not reader.fps > 0:
        raise VideoError(reader.path, "has no frame rate, which windows in seconds need")
    duration = float(times[-1]) + 1 / reader.fps
    stride = max(stride_seconds, 1 / reader.fps)
    count = 1 + max(0, int((duration - window_seconds + _EPSILON_SECONDS) / stride))
    starts = [k * stride for k in range(count)]
    if starts[-1] + window_seconds < duration - _EPSILON_SECONDS:
        starts.append(duration - window_seconds)
    windows = []
    for start in starts:
        end = min(start + window_seconds, duration)
        first = int(np.searchsorted(times, start - _EPSILON_SECONDS))
        stop = int(np.searchsorted(times, end - _EPSILON_SECONDS))
        if stop <= first:  # a gap in a video of variable rate: the frame then on display
            first = max(0, stop - 1)
            stop = first + 1
        windows.append(Window(start, end, first, stop))
    return windows


def clip_seconds(sampler: FrameSampler, fps: float) -> float:
    """What a clip spans where the sampling fixes that (dense, interval), else 0."""
    if sampler.scheme not in ("dense", "interval"):
        return 0.0
    return sampler.clip_length * sampler.frame_stride / (sampler.target_fps or fps)


def read_windows(
    reader: FrameReader,
    windows: Sequence[Window],
    sampler: FrameSampler,
    transform: TestTransform,
    num_clips: int = 1,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The views of every window, in one pass over the video.

    Args:
        reader: of the video.
        windows: of `slide`.
        sampler: chooses N clips in each window.
        transform: cuts M crops.
        num_clips: N.

    Yields:
        (number of the window, (V, T, S, S, 3) uint8); view v is crop v % M of clip v // M. Windows come as
        soon as their last frame was decoded.

    Raises:
        VideoError: too much of the video cannot be decoded.
    """
    clips_WNT = np.stack(
        [w.first + sampler.test(w.stop - w.first, reader.fps, num_clips) for w in windows]
    ).astype(np.int64)
    length, size = sampler.clip_length, transform.crop_px
    flat = clips_WNT.reshape(-1)
    order = np.argsort(flat, kind="stable")
    places = order.tolist()
    wanted, firsts = np.unique(flat[order], return_index=True)
    stops = [*firsts[1:].tolist(), len(places)]
    pending: dict[int, np.ndarray] = {}
    missing = np.full(len(windows), num_clips * length)
    for (_, frame), first, stop in zip(reader.iter_forward(wanted), firsts.tolist(), stops, strict=True):
        crops = transform.crops(torch.from_numpy(frame).permute(2, 0, 1))
        pixels = [crop.permute(1, 2, 0).numpy() for crop in crops]
        for place in places[first:stop]:
            w, clip_place = divmod(place, num_clips * length)
            n, t = divmod(clip_place, length)
            if w not in pending:
                pending[w] = np.empty((num_clips, len(pixels), length, size, size, 3), np.uint8)
            for m, crop in enumerate(pixels):
                pending[w][n, m, t] = crop
            missing[w] -= 1
            if not missing[w]:
                yield w, torch.from_numpy(pending.pop(w)).flatten(0, 1)


def sliding_views(
    source: str | os.PathLike[str] | FrameReader,
    window_seconds: float,
    stride_seconds: float,
    sampler: FrameSampler,
    transform: TestTransform,
    num_clips: int = 1,
    max_read_seconds: float | None = None,
) -> tuple[list[Window], float, Iterator[tuple[int, torch.Tensor]]]:
    """`slide` and `read_windows`; of a path in a process of their own, which may hang or crash without harm.

    Args:
        source: path of a video, or a reader, which is read in this process and without a time limit.
        window_seconds, stride_seconds: as for `slide`.
        sampler, transform, num_clips: as for `read_windows`.
        max_read_seconds: for opening the video, and for each window; None: no limit.

    Returns:
        The windows, what a clip spans (`clip_seconds`), and the views of each window as from `read_windows`.

    Raises:
        VideoError: the video cannot be read; also while the windows are read.
    """
    if isinstance(source, FrameReader):
        windows = slide(source, window_seconds, stride_seconds)
        seen = read_windows(source, windows, sampler, transform, num_clips)
        return windows, clip_seconds(sampler, source.fps), seen
    path = os.path.abspath(source)
    size = transform.crop_px
    process = ReadingProcess((num_clips * transform.num_crops, sampler.clip_length, size, size, 3))

    def steps() -> Iterator[object]:
        with open_video(path) as reader:
            windows = slide(reader, window_seconds, stride_seconds)
            yield [astuple(window) for window in windows], clip_seconds(sampler, reader.fps)
            for number, views in read_windows(reader, windows, sampler, transform, num_clips):
                process.memory.copy_(views)
                yield number

    step = functools.partial(next, steps())
    (rows, span), _ = process.call(path, step, seconds=max_read_seconds)

    def views() -> Iterator[tuple[int, torch.Tensor]]:
        with closing(process):
            for _ in rows:
                yield process.call(path, step, seconds=max_read_seconds)

    return [Window(*row) for row in rows], span, views()
