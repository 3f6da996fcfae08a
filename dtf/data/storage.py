"""Opening a video, whatever it is; and those stored as JPEG frames, in a folder or in an LMDB.

Layouts of frames that are read:

* Folder: one folder a video, frames as PREFIX + number + ".jpg" (`00001.jpg` in the SIFA / DTF code,
  `img_00001.jpg` in mmaction2, `000001.jpg` ...), any number of digits.
* LMDB: one environment a video (a folder with `data.mdb`), the same names as keys: the SIFA / DTF code reads
  Kinetics from keys `000001.jpg`, `000002.jpg`, ... (their sizes and rates are not stored, nor is anything
  else).

Shape letters: T frames, C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

import itertools
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from dtf.data import bounds
from dtf.data.decode import MAX_FILLED_FRACTION
from dtf.data.decoders import reader_class
from dtf.data.lists import PICTURES, is_video_name
from dtf.data.memory import ArrayReader
from dtf.data.pictures import FORMATS, PICTURE_FAULTS, PictureReader, is_picture, open_picture
from dtf.data.reader import FrameReader, VideoError
from dtf.files import NotRegularError, check_regular
from dtf.text import printable

_FRAME_NAME = re.compile(r"(.*?)([0-9]{1,9})\.jpe?g", re.IGNORECASE | re.DOTALL)
# Folders with optical flow beside the frames hold several series; these are the names of frames.
_FRAME_PREFIXES = ("", "img_", "image_", "frame_", "img", "image", "frame")
_LMDB_FILE = "data.mdb"
_LMDB_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)


class JpegReader(FrameReader):
    """Frames of one video that is stored as numbered JPEG images.

    Index 0 is the lowest number there is. A number left out is a frame that never came: like an image that
    cannot be decoded, it is replaced by the nearest one and counted in `filled`. All frames have the size of
    the first one read. Pillow decodes, as in the SIFA / DTF code: torchvision gives the same pixels in 0.6
    of its time, but is about to drop its decoder; FFmpeg's gives others.

    Args:
        path: the folder or LMDB, for messages.
        names: names of its images, `PREFIX + number + .jpg`; other names are ignored.

    Attributes:
        fps: 0, since it is not stored: sampling with target_fps needs video files.

    Raises:
        VideoError: no image, or several series of images.
    """

    fps = 0.0

    def __init__(self, path: str, names: Sequence[str]) -> None:
        if len(names) > bounds.MAX_PACKETS:
            raise VideoError(path, f"holds more than {bounds.MAX_PACKETS} images")
        self.path = path
        self.name = os.path.basename(path)
        self._size: tuple[int, int] | None = None
        series: dict[str, dict[int, str]] = {}
        for name in names:
            if match := _FRAME_NAME.fullmatch(name):
                series.setdefault(match[1], {})[int(match[2])] = name
        if not series:
            raise VideoError(path, "holds no numbered JPEG images (00001.jpg, img_00001.jpg, ...)")
        prefix = (
            next((p for p in _FRAME_PREFIXES if p in series), None) if len(series) > 1 else next(iter(series))
        )
        if prefix is None:
            kinds = ", ".join(printable(p) for p in sorted(series)[:5])
            raise VideoError(path, f"holds several series of images ({kinds}); name the frames img_00001.jpg")
        self._name_of = series[prefix]
        self._first = min(self._name_of)
        self.num_frames = max(self._name_of) - self._first + 1
        if self.num_frames > 1.0 / (1.0 - MAX_FILLED_FRACTION) * len(self._name_of):
            raise VideoError(
                path, f"holds {len(self._name_of)} images numbered over a range of {self.num_frames}"
            )

    @abstractmethod
    def _load(self, name: str) -> bytes | None:
        """The bytes of an image; None when they cannot be read.

        Raises:
            VideoError: it is no regular file, or larger than `MAX_IMAGE_BYTES`.
        """

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`. VideoError: no frame, or less than half of the wanted ones, could be decoded."""
        wanted = self._wanted(indices)
        missing = []
        for index in wanted.tolist():
            frame = self._decode(index)
            if frame is None:
                missing.append(index)
            else:
                yield index, frame
        self.filled += len(missing)
        if len(missing) > MAX_FILLED_FRACTION * len(wanted):
            raise VideoError(self.path, f"{len(missing)} of {len(wanted)} wanted frames could not be decoded")
        for index in missing:
            yield index, self._nearest(index)

    def _nearest(self, index: int) -> np.ndarray:
        for distance in range(1, self.num_frames):
            for near in (index - distance, index + distance):
                if 0 <= near < self.num_frames and (frame := self._decode(near)) is not None:
                    return frame
        raise VideoError(self.path, "no frame could be decoded")

    def _decode(self, index: int) -> np.ndarray | None:
        """(H, W, C) uint8 RGB, or None when the image is missing or broken."""
        name = self._name_of.get(self._first + index)
        data = self._load(name) if name is not None else None
        if data is None:
            self.errors += name is not None
            return None
        try:
            with open_picture(self.path, data, ("JPEG",), str(name)) as opened:
                image = opened
                if image.mode != "RGB":
                    image = image.convert("RGB")
                if self._size is None:
                    self._size = image.size
                elif image.size != self._size:
                    image = image.resize(self._size, Image.Resampling.BILINEAR)
                return np.array(image)
        except VideoError:
            raise
        except PICTURE_FAULTS:
            self.errors += 1
            return None


class FrameFolderReader(JpegReader):
    """Frames of one video from a folder of JPEG images; see `JpegReader`.

    Args:
        path: the folder.

    Raises:
        VideoError: the folder is missing or not readable, or as `JpegReader`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = os.path.abspath(os.fspath(path))
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise VideoError(folder, f"cannot be read as a folder of frames ({error.strerror})") from error
        super().__init__(folder, names)

    def _load(self, name: str) -> bytes | None:
        try:
            return bounds.read_regular(os.path.join(self.path, name), bounds.MAX_IMAGE_BYTES)
        except (NotRegularError, bounds.TooLargeError) as error:
            raise VideoError(self.path, f"image {printable(name)} {error.strerror}") from error
        except OSError:
            return None


class LmdbReader(JpegReader):
    """Frames of one video from an LMDB of JPEG images (package `lmdb`); see `JpegReader`.

    Opened read-only and without a lock file, so that read-only storage works and any number of processes
    may read.

    Args:
        path: the folder that holds `data.mdb`.

    Raises:
        ModuleNotFoundError: `lmdb` is not installed.
        VideoError: the database is missing, cut short or not readable, or as `JpegReader`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = os.path.abspath(os.fspath(path))
        lmdb = _import_lmdb(folder)
        # The file is mapped: beyond its end lies not an error but a signal that would kill the process.
        _check_lmdb_file(folder)
        self._env: Any = None
        self._transaction: Any = None
        self._error = lmdb.Error
        try:
            self._env = lmdb.open(folder, readonly=True, lock=False, readahead=False, create=False)
            info = self._env.info()
            needed = (info["last_pgno"] + 1) * self._env.stat()["psize"]
            size = os.path.getsize(os.path.join(folder, _LMDB_FILE))
            if size < needed:
                raise VideoError(folder, f"{_LMDB_FILE} is cut short ({size} of {needed} bytes)")
            self._transaction = self._env.begin(buffers=True)
            cursor = self._transaction.cursor()
            keys = list(itertools.islice(cursor.iternext(values=False), bounds.MAX_PACKETS + 1))
            super().__init__(folder, [bytes(key).decode("utf-8", "replace") for key in keys])
        except (lmdb.Error, OSError) as error:
            self.close()
            raise VideoError(folder, f"cannot be read as an LMDB ({error})") from error
        except BaseException:
            self.close()
            raise

    def _load(self, name: str) -> bytes | None:
        try:
            value = self._transaction.get(name.encode())
        except self._error:
            return None
        if value is not None and len(value) > bounds.MAX_IMAGE_BYTES:
            raise VideoError(
                self.path,
                f"image {printable(name)} has {len(value)} bytes, more than {bounds.MAX_IMAGE_BYTES}",
            )
        return None if value is None else bytes(value)

    def close(self) -> None:
        """Free the database. Calling it again does nothing."""
        super().close()
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None
        if self._env is not None:
            self._env.close()
            self._env = None


def open_video(
    source: str | os.PathLike[str] | np.ndarray | torch.Tensor, decoder: str = "pyav", fps: float = 0.0
) -> FrameReader:
    """Open a video whatever it is: a file, a folder of JPEG frames, an LMDB of them, a picture, an array.

    A file with the ending of videos is one; of others the first bytes say whether it is a picture.

    Args:
        source: path of a file or folder (one with `data.mdb` is an LMDB), or (T, H, W, 3) uint8 RGB.
        decoder: what decodes video files, one of `dtf.data.decoders.DECODERS`; pictures are Pillow's.
        fps: frames per second of an array, 0: not known; files say their own.

    Raises:
        VideoError: it cannot be used; one line "path: reason".
        ValueError: the decoder is unknown or not installed; fps is negative or no number.
        ModuleNotFoundError: it is an LMDB and `lmdb` is not installed.
    """
    if not isinstance(source, str | os.PathLike):
        return ArrayReader(source, fps)
    if os.path.isdir(source):
        is_lmdb = os.path.exists(os.path.join(source, _LMDB_FILE))
        return LmdbReader(source) if is_lmdb else FrameFolderReader(source)
    name = os.path.basename(source)
    if not is_video_name(name) and is_picture(source):
        return PictureReader(source)
    try:
        return reader_class(decoder)(source)
    except VideoError as error:
        if PICTURES.takes(os.fspath(name)) and os.path.isfile(source):
            kinds = ", ".join(FORMATS)
            reason = f"is no picture of a kind that is read ({kinds}), and {error.reason}"
            raise VideoError(os.path.abspath(source), reason) from error
        raise


def _import_lmdb(folder: str) -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{printable(folder)} is an LMDB; reading it needs the package lmdb: pip install -e '.[lmdb]'"
        ) from error
    return lmdb


def _check_lmdb_file(folder: str) -> None:
    """Refuse files that are no whole LMDB before they are mapped."""
    file = os.path.join(folder, _LMDB_FILE)
    try:
        size = check_regular(file)
    except OSError as error:
        raise VideoError(folder, f"{_LMDB_FILE} cannot be read ({error.strerror})") from error
    if size < 2 * min(_LMDB_PAGE_SIZES):
        raise VideoError(folder, f"{_LMDB_FILE} is no LMDB ({size} bytes)")
