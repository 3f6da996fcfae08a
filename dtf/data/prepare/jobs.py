"""What `dtf.data.prepare` does with one video: look whether it can be used, or make a smaller copy."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange

from dtf.data.decode import VideoError, VideoReader
from dtf.data.pool import Stop
from dtf.data.reader import FrameReader
from dtf.data.storage import open_video

PART = ".part"
"""Ending of files that are being written."""

PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
"""Efforts of libx264."""

TIME_BASE = Fraction(1, 90_000)
"""Of resized copies: divides the frame times of all usual rates."""

# What a failed write tells about the disk, not about the video.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


@dataclass(frozen=True)
class Encoding:
    """How `resize` encodes; the measurements behind the defaults are in docs/data.md.

    Args:
        short_side_px: short side of the copy in pixels; a smaller video is copied as it is.
        keyframe_distance: frames from one key frame to the next, at most.
        crf: quality of libx264, 0 (lossless) to 51.
        preset: effort of libx264, "ultrafast" to "veryslow".
    """

    short_side_px: int
    keyframe_distance: int = 60
    crf: int = 20
    preset: str = "veryfast"


@dataclass(frozen=True)
class Probe:
    """Job of `probe`.

    Args:
        path: file or folder of one video.
        full: decode every frame instead of the first, the middle and the last one.
    """

    path: str
    full: bool = False


@dataclass(frozen=True)
class Resize:
    """Job of `resize`.

    Args:
        path: video file.
        target: file to write, without the ending: ".mp4", or that of the video if it is copied as it is.
        encoding: how.
    """

    path: str
    target: str
    encoding: Encoding


def probe(job: Probe) -> dict[str, Any]:
    """Open a video and decode some or all of its frames.

    Returns:
        frames (number), fps (0: unknown), width and height as shown (pixels), rotation (degrees, already
        applied), damaged (packets and frames that were lost), or error (one line).
    """
    torch.set_num_threads(1)
    try:
        with open_video(job.path) as reader:
            last = reader.num_frames - 1
            size: tuple[int, ...] = ()
            indices = np.arange(last + 1) if job.full else np.unique([0, last // 2, last])
            for _, frame in reader.iter_frames(indices):
                size = size or frame.shape
            return _describe(reader, size)
    except VideoError as error:
        return {"error": error.reason}


def resize(job: Resize) -> dict[str, Any]:
    """Write a copy of a video with a given short side, frame for frame; it appears complete or not at all.

    A video that is small enough is copied as it is. Time stamps are kept, rotation is applied, audio is
    left out.

    Returns:
        As `probe`, of the copy, and the ending of its name.

    Raises:
        Stop: the copy cannot be written.
    """
    torch.set_num_threads(1)
    folder, name = os.path.split(job.target)
    # Hidden, so that nothing takes it for a video; numbered, so that a process that a killed run has left
    # behind does not meddle with it.
    part = os.path.join(folder, f".{name}.{os.getpid()}{PART}")
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.isdir(job.path):
            return {"error": "is stored as frames; only video files are resized"}
        num_frames, damaged, copied = _encode(job.path, part, job.encoding)
        if copied:
            shutil.copyfile(job.path, part)
        with VideoReader(part) as copy:
            size = next(copy.iter_frames([0]))[1].shape
            if copy.num_frames != num_frames:
                return {"error": f"the copy has {copy.num_frames} of {num_frames} frames"}
            record = _describe(copy, size)
            record["damaged"] = damaged
        record["ending"] = os.path.splitext(job.path)[1].lower() if copied else ".mp4"
        os.replace(part, job.target + record["ending"])
        return record
    except VideoError as error:
        return {"error": error.reason}
    except (av.FFmpegError, OSError) as error:
        if error.errno in _DISK_ERRORS:
            raise Stop(f"cannot write {job.target} ({error.strerror})") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


class _ScalingReader(VideoReader):
    """Hands out frames scaled, upright and as the encoder takes them.

    By way of RGB, the fast conversion of the decoder would darken the copy by one level in 255.
    """

    scaled_size = (0, 0)  # (width, height) before rotation

    def _to_array(self, frame: Any) -> Any:
        self._check_frame(frame)
        width, height = self.scaled_size
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation="AREA",
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        if self.rotation:
            planes = [_rotated(plane, self.rotation) for plane in scaled.planes]
            height, width = planes[0].shape
            upright: Any = av.VideoFrame(width, height, "yuv420p")
            for plane, turned in zip(upright.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                rows[:, : plane.width] = turned
                plane.update(rows.tobytes())
            upright.colorspace, upright.color_range = scaled.colorspace, scaled.color_range
            scaled = upright
        return scaled


def _rotated(plane: Any, degrees: int) -> np.ndarray:
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return np.rot90(rows[:, : plane.width], k=round(degrees / 90))


def _encode(path: str, part: str, encoding: Encoding) -> tuple[int, int, bool]:
    """Encode a video; returns (frames, lost ones, False), or (frames, 0, True) when it is small enough."""
    with VideoReader(path) as plain:
        height, width = next(plain.iter_frames([0]))[1].shape[:2]
        rotation, num_frames = plain.rotation, plain.num_frames
    scale = encoding.short_side_px / min(height, width)
    if scale >= 1:
        return num_frames, 0, True
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    with _ScalingReader(path) as reader:
        reader.scaled_size = size if rotation % 180 == 0 else size[::-1]
        _write_mp4(reader, part, size, encoding)
        return num_frames, reader.errors + reader.filled, False


def _write_mp4(reader: VideoReader, part: str, size: tuple[int, int], encoding: Encoding) -> None:
    fps = reader.fps or 25.0
    seconds = reader.frame_seconds if reader.fps else np.arange(reader.num_frames) / fps
    stamps = np.round(seconds / float(TIME_BASE)).astype(np.int64)
    # Times closer than a tick, if ever, move apart: the frames must stay as many as they are.
    stamps = np.maximum.accumulate(stamps - np.arange(len(stamps))) + np.arange(len(stamps))
    options = {"crf": str(encoding.crf), "preset": encoding.preset, "g": str(encoding.keyframe_distance)}
    with av.open(part, "w", format="mp4", container_options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        stream.codec_context.thread_count = 1  # the parallelism is in the processes
        for number, (frame, stamp) in enumerate(zip(_frames_in_order(reader), stamps.tolist(), strict=True)):
            if number == 0:  # so that the copy is turned into RGB by the same matrix
                stream.codec_context.colorspace = frame.colorspace
                stream.codec_context.color_range = ColorRange.MPEG
            frame.pts, frame.time_base, frame.pict_type = stamp, TIME_BASE, 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames_in_order(reader: VideoReader) -> Iterator[Any]:
    """Every frame of a video; the one before stands in for a frame that never came."""
    frames = reader.iter_frames(np.arange(reader.num_frames))
    expected, latest = 0, None
    for index, frame in frames:
        if index < expected:  # filled-in frames come last and are not needed; the reader may yet raise
            continue
        while expected < index:
            yield frame if latest is None else latest
            expected += 1
        yield frame
        expected, latest = index + 1, frame
    for _ in range(expected, reader.num_frames):
        assert latest is not None
        yield latest


def _describe(reader: FrameReader, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "frames": reader.num_frames,
        "fps": round(reader.fps, 3),
        "width": shape[1],
        "height": shape[0],
        "rotation": getattr(reader, "rotation", 0),
        "damaged": reader.errors + reader.filled,
    }
