"""Makes video files whose frames carry their number, for any codec and container, and reads it back."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12
COLUMNS, ROWS = 4, 3


def painted(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: `number` in binary as 12 black or white blocks, the lowest bit at the top left."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        y, x = divmod(bit, COLUMNS)
        if number >> bit & 1:
            rows = slice(y * height // ROWS, (y + 1) * height // ROWS)
            frame[rows, x * width // COLUMNS : (x + 1) * width // COLUMNS] = 255
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number painted into a whole frame (H, W, 3), read from the middle of each block."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(BITS):
        y, x = divmod(bit, COLUMNS)
        row, column = (2 * y + 1) * height // (2 * ROWS), (2 * x + 1) * width // (2 * COLUMNS)
        number |= int(frame[row - 1 : row + 2, column - 1 : column + 2].mean() > 127) << bit
    return number


def numbers_of(clip: np.ndarray) -> list[int]:
    """Numbers of a clip (T, H, W, 3)."""
    return [number_of(frame) for frame in clip]


def write_video(
    path: Path,
    numbers: Iterable[int] | int,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    fps: int = 30,
    gop: int = 12,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    ticks: int | None = None,
    rotation: int = 0,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    audio_seconds: float = 0.0,
) -> Path:
    """Encode painted frames.

    Args:
        path: file to write.
        numbers: number of each frame, or how many (0, 1, ...).
        codec: FFmpeg encoder.
        size: (width, height) in pixels.
        fps: frames per second.
        gop: largest distance of key frames.
        pixel_format: of the stream.
        options: of the encoder.
        pts: time stamp of each frame in ticks; default: its place, with one tick per frame.
        ticks: ticks per second; default: fps.
        rotation: degrees counter-clockwise, as metadata (MP4 without sound only).
        container_format: of the file; default: by its extension.
        container_options: of the container.
        audio_seconds: length of a silent audio track; it is written when above 0.
    """
    numbers = list(range(numbers)) if isinstance(numbers, int) else list(numbers)
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, ticks or fps)
        stream.time_base = Fraction(1, ticks or fps)
        stream.codec_context.thread_count = 1
        defaults = {"crf": "18", "bf": "2"} if codec in ("libx264", "libx265") else {}
        stream.options = {**defaults, **(options or {})}
        sound = container.add_stream("aac", rate=8000) if audio_seconds else None
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(painted(number, size[1], size[0]), format="rgb24")
            frame.pts = place if pts is None else pts[place]
            frame.time_base = Fraction(1, ticks or fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            write_silence(container, sound, audio_seconds)
    if rotation:
        set_mp4_rotation(path, rotation)
    return path


def set_mp4_rotation(path: Path, degrees: int) -> None:
    """Write a display matrix into the first track header of an MP4 file (older PyAV cannot)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # name, version and flags, times, ids, duration, layer, volume
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    one = 1 << 16  # 16.16 fixed point, the third column 2.30
    struct.pack_into(">9i", data, matrix, cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    """Append a silent track."""
    for start in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_audio_only(path: Path) -> Path:
    """An mp4 file with a silent track and no picture."""
    with av.open(str(path), "w") as container:
        write_silence(container, container.add_stream("aac", rate=8000), 1.0)
    return path


def full_decode(path: Path) -> np.ndarray:
    """All frames (N, H, W, 3) uint8 as plain PyAV gives them, in order of output."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
