"""Pictures by Pillow, behind the reading interface of `FrameReader`: a still is a video of one frame.

Shape letters: C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from dtf.data import bounds
from dtf.data.reader import FrameReader, VideoError
from dtf.files import NotRegularError, open_regular
from dtf.text import printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What a picture may be, by Pillow's names. Not TIFF: its library prints what it thinks of damaged files."""

PICTURE_FAULTS = (OSError, SyntaxError, ValueError)
"""What Pillow raises for data that are no whole picture."""

# TIFF too: what is left out is told as what it is.
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_JPEG_STREAMS = (".mjpeg", ".mjpg")

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureReader(FrameReader):
    """A picture file as a video of one frame, decoded when it is opened.

    EXIF orientation is applied, 16 bits become the upper 8, transparency is left out. Of the several pictures
    that a phone stores in one JPEG it is the first.

    Args:
        path: a file in one of `FORMATS`; its extension is not trusted.

    Attributes:
        fps: 0: a still has no rate, and sampling with target_fps needs none for it.

    Raises:
        VideoError: the file is missing, no whole picture, an animation, or one that asks for more than
            `dtf.data.bounds` allows.
    """

    num_frames = 1
    fps = 0.0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.name = os.path.basename(self.path)
        try:
            data = bounds.read_regular(self.path, bounds.MAX_IMAGE_BYTES)
        except (NotRegularError, bounds.TooLargeError) as error:
            raise VideoError(self.path, str(error.strerror)) from error
        except OSError as error:
            raise VideoError(self.path, f"cannot be read ({error.strerror})") from error
        try:
            with warnings.catch_warnings():
                # Of odd EXIF, and of sizes below Pillow's limit, which are above that of `open_picture`.
                warnings.simplefilter("ignore")
                with open_picture(self.path, data, FORMATS) as picture:
                    self._frame = np.array(_upright(_to_rgb(self.path, picture), _orientation(picture)))
        except UnidentifiedImageError as error:
            kinds = ", ".join(FORMATS)
            raise VideoError(self.path, f"is no whole picture of a kind that is read ({kinds})") from error
        except VideoError:
            raise
        except PICTURE_FAULTS as error:
            text = printable(" ".join(str(error).split())) or type(error).__name__
            raise VideoError(self.path, f"cannot be decoded as a picture ({text})") from error

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`."""
        for index in self._wanted(indices).tolist():
            yield index, self._frame


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a picture; not so animated PNGs and JPEGs named as a stream of them.

    False as well for what is no readable file.
    """
    try:
        with open_regular(path) as file:
            head = file.read(1 << 12)
    except OSError:
        return False
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if b"acTL" in head and head.startswith(b"\x89PNG"):
        return False
    if head.startswith(b"\xff\xd8") and os.fspath(path).lower().endswith(_JPEG_STREAMS):
        return False
    return head.startswith(_STARTS)


def open_picture(path: str, data: bytes, formats: Sequence[str], name: str = "") -> Image.Image:
    """The header of a picture, whose size may be asked for; nothing is decoded yet.

    Args:
        path: of the file or video, for messages.
        data: the bytes of the picture.
        formats: that it may have, by Pillow's names.
        name: of the picture within the video.

    Raises:
        VideoError: it is larger than `dtf.data.bounds` allows.
        OSError, SyntaxError, ValueError: `PICTURE_FAULTS`: it is none of these formats, or damaged.
    """
    which = f"image {printable(name)} " if name else ""
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=tuple(formats))
    except Image.DecompressionBombError as error:
        reason = f"{which}is too large to decode (at most {bounds.MAX_PIXELS} pixels)"
        raise VideoError(path, reason) from error
    if fault := bounds.frame_fault(*picture.size):
        raise VideoError(path, f"{which}{fault}")
    return picture


def _to_rgb(path: str, picture: Image.Image) -> Image.Image:
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise VideoError(path, "is an animation, not one picture: save it as a GIF or a video")
    if picture.mode.startswith(
        "I"
    ):  # grey of 16 bits ("I;16", in older releases "I"), which Pillow would cut off
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours; the direct way warns
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _orientation(picture: Image.Image) -> int:
    """What EXIF says, 1..8; 1 where it says nothing that can be read."""
    try:
        return picture.getexif().get(_EXIF_ORIENTATION, 1)
    except (*PICTURE_FAULTS, struct.error):  # a damaged note beside a sound picture
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)
