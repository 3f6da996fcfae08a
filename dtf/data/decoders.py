"""decord and torchcodec as decoders of video files, behind the reading interface of `VideoReader`.

PyAV (`dtf.data.decode`) is the default: it reads all of the files below rightly, and is the fastest of the
three on most (docs/data.md). The others are for comparison with work that used them. On plain MP4 and WebM
files all three give the same frames; where these two give wrong ones, nothing says so. Seen with decord 0.6.0
and torchcodec 0.17 (exact mode, as used here) on files made for it:

| video | decord | torchcodec |
| --- | --- | --- |
| AVI with B-frames | wrong frames, up to 48 away, when not all are read | 1 or 2 away, error at the end |
| MPEG-4 Part 2 with B-frames in MP4 | wrong frames, 2 away, when not all are read | right |
| open GOPs (x265's default, x264 on demand) | up to 3 frames off, when not all are read | the same (HEVC) |
| edit list that trims the front | counts the trimmed frames, repeats the last one | right |
| variable frame rate | right | right |
| repeated time stamps | right | one frame off |
| MPEG-TS (start later than 0, cut inside a GOP) | first GOP lost, end repeated | wrong frames, or error |
| MPEG-PS, no duration in the header, single WebM frame | error | right, but error at the end of MPEG-PS |
| raw H.264 without time stamps | error | error |
| AV1 | error | right |
| 16, 24, 48 or 72 pixels wide | error | right |
| size changes on the way | first GOP lost, or error | error |
| data cut short, flipped bytes | error for the clip | error for the clip that touches them |
| names that are not UTF-8 | error | error |
| rotation metadata | applied | applied |

Damage is neither counted nor filled: `errors` and `filled` stay 0, and one bad frame costs the video.

Shape letters: T frames, C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

import math
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from dtf.data.decode import VideoError, VideoReader, check_pyav, open_stream
from dtf.data.reader import FrameReader
from dtf.text import nearest, printable


class LibraryReader(FrameReader):
    """Frames of one video file by index, as another library counts and decodes them; one thread.

    PyAV looks at each file first, so that what `VideoReader` refuses (pipes, playlists, lists of other files,
    huge frames) never gets to a library that would open it.

    Args:
        path: the video file; its extension is not trusted.

    Attributes:
        path, name, num_frames, fps, errors, filled: as of `VideoReader`; fps is 0 where it is not known,
            errors and filled are always 0.

    Raises:
        VideoError: `VideoReader` would refuse it, or the library cannot open it.
        ValueError: the library is not installed.
    """

    library: ClassVar[str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.name = os.path.basename(self.path)
        self._decoder: Any = None
        self._shape: tuple[int, ...] | None = None
        library = self.load_library()
        # What the library raises for files that it cannot read.
        self._failures: tuple[type[Exception], ...] = (
            RuntimeError,
            ValueError,
            IndexError,
            AssertionError,
            StopIteration,
            *self._own_errors(library),
        )
        container, stream = open_stream(self.path)
        with container:
            stream_index = stream.index
        try:
            self._decoder = self._open(library, stream_index)
            self.num_frames = len(self._decoder)
            self.fps = self._mean_fps()
        except self._failures as error:
            raise self._fault("cannot be opened", error) from error
        if self.num_frames < 1:
            raise VideoError(self.path, "has a video stream without any frame")

    @classmethod
    @abstractmethod
    def load_library(cls) -> Any:
        """The library's module.

        Raises:
            ValueError: it is not installed, or cannot be used.
        """

    def _own_errors(self, library: Any) -> tuple[type[Exception], ...]:
        return ()

    @abstractmethod
    def _open(self, library: Any, stream_index: int) -> Any:
        """A decoder of the file at `path`; its len() is the number of frames."""

    @abstractmethod
    def _mean_fps(self) -> float:
        """Frames per second over the whole video, 0 where it is not known."""

    @abstractmethod
    def _frame(self, index: int) -> torch.Tensor:
        """(H, W, C) uint8 RGB."""

    def _fault(self, what: str, error: Exception) -> VideoError:
        """The first line of the library's message, without the line of C++ that it comes from."""
        text = (str(error) or type(error).__name__).splitlines()[0]
        text = re.sub(r"^.*?\.(cc|cpp|h):[0-9]+[:,] *", "", text)
        return VideoError(self.path, f"{what} by {self.library} ({printable(text)})")

    def close(self) -> None:
        """Free file and decoder. Calling it again does nothing."""
        super().close()
        self._decoder = None

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`. VideoError: a wanted frame could not be decoded."""
        wanted = self._wanted(indices)
        for index in wanted.tolist():
            try:
                frame = self._frame(index).numpy()
            except self._failures as error:
                raise self._fault(f"frame {index} cannot be decoded", error) from error
            self._shape = self._shape or frame.shape
            if frame.shape != self._shape:
                # The crop box was drawn for the first size; `VideoReader` scales such frames, these do not.
                raise VideoError(self.path, f"changes its size at frame {index}, which only pyav can read")
            yield index, frame


class DecordReader(LibraryReader):
    """Frames by decord; see `LibraryReader`, and the top of this file for what it gets wrong."""

    library = "decord"

    @classmethod
    def load_library(cls) -> Any:
        """See `LibraryReader`."""
        try:
            import decord
        except (ImportError, OSError, RuntimeError) as error:  # not there; built for another platform
            raise _unusable(cls.library, error) from error
        return decord

    def _own_errors(self, library: Any) -> tuple[type[Exception], ...]:
        from decord._ffi.base import DECORDError, DECORDLimitReachedError

        return DECORDError, DECORDLimitReachedError

    def _open(self, library: Any, stream_index: int) -> Any:
        self._as_torch = library.bridge.use_torch
        # It takes FFmpeg's best video stream as PyAV does; there is no argument for one.
        return library.VideoReader(self.path, ctx=library.cpu(0), num_threads=1)

    def _mean_fps(self) -> float:
        fps = float(self._decoder.get_avg_fps())
        return fps if math.isfinite(fps) else 0.0

    def _frame(self, index: int) -> torch.Tensor:
        # What an index returns depends on a setting of the whole process: the scope chooses tensors for this
        # one call and puts the caller's choice back.
        with self._as_torch():
            frame = self._decoder[index]
        if frame.shape[2] != 3:  # 0.6.0 divides the padded length of a row by the width
            raise RuntimeError(f"rows {frame.shape[1]} pixels wide come with padding between them")
        return frame


class TorchcodecReader(LibraryReader):
    """Frames by torchcodec in exact mode; see `LibraryReader`, and the top of this file."""

    library = "torchcodec"

    @classmethod
    def load_library(cls) -> Any:
        """See `LibraryReader`."""
        try:
            import torchcodec
            import torchcodec.decoders
        except (ImportError, OSError, RuntimeError) as error:
            raise _unusable(cls.library, error) from error
        # Newer releases import without FFmpeg and say so here; older ones raise.
        if getattr(torchcodec, "ffmpeg_major_version", 0) is None:
            raise _unusable(cls.library, None)
        return torchcodec

    def _open(self, library: Any, stream_index: int) -> Any:
        return library.decoders.VideoDecoder(
            self.path,
            stream_index=stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )

    def _mean_fps(self) -> float:
        return float(self._decoder.metadata.average_fps or 0.0)

    def _frame(self, index: int) -> torch.Tensor:
        return self._decoder.get_frame_at(index).data


_LIBRARIES: dict[str, type[LibraryReader]] = {"decord": DecordReader, "torchcodec": TorchcodecReader}

DECODERS = ("pyav", *_LIBRARIES)
"""Names of the decoders; "pyav" is `VideoReader`."""


def reader_class(decoder: str) -> type[VideoReader] | type[LibraryReader]:
    """The reader of video files for a name in `DECODERS`; its library is there and works.

    Raises:
        ValueError: the name is unknown, or its library is missing, or the installed PyAV, by which every
            reader looks at a file first, does not fit.
    """
    check_pyav()
    if decoder == "pyav":
        return VideoReader
    if decoder not in _LIBRARIES:
        hint = nearest(str(decoder), DECODERS, repr)
        raise ValueError(f"unknown decoder {decoder!r}{hint} (allowed: {', '.join(DECODERS)})")
    _LIBRARIES[decoder].load_library()
    return _LIBRARIES[decoder]


def _unusable(library: str, error: Exception | None) -> ValueError:
    """Why a library cannot be used and what to do; None: FFmpeg's libraries were not found."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == library:
        reason = "is not installed"
    elif library == "torchcodec":
        reason = "finds no FFmpeg (4 to 8) among the shared libraries, or does not fit this torch"
    else:
        reason = f"cannot be imported ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    needs = ", with FFmpeg's shared libraries installed (apt-get install ffmpeg, conda install ffmpeg)"
    return ValueError(
        f"decoder {library!r}: {library} {reason}. Use the default decoder 'pyav', or: pip install "
        f"-e '.[{library}]'{needs if library == 'torchcodec' else ''}"
    )
