"""What one video, list or image may ask for: the limits, in one place, and the door that files come in by.

A file is data from elsewhere. Its header may be wrong on purpose, and what it decodes to has little to do
with its size: 90 kB of PNG in a MOV are frames of 16000 x 16000 pixels. Each limit is far above real data and
keeps a reader below a gigabyte or two. Who has larger data raises the constant here.
"""

from __future__ import annotations

import io
import os
import stat

MAX_PIXELS = 1 << 26
"""Pixels of a frame as it is decoded, and of a picture: 67 million; 8K (7680 x 4320) has 33 million."""

MAX_ASPECT = 256
"""Longer over shorter side of a frame. The short side is scaled to a few hundred pixels, the long one with
it: frames of 1000000 x 1 would become 256 million pixels long."""

MAX_PACKETS = 2_000_000
"""Compressed frames of a video: 18 hours at 30 a second. The frame table takes about 50 bytes for each, and
FFmpeg's index as much again."""

MAX_CLIP_BYTES = 4 << 30
"""Frames that `FrameReader.read` holds at their full size, as RGB: 23 seconds of 1080p."""

MAX_IMAGE_BYTES = 1 << 28
"""A picture file, or a value of an LMDB: 4 bytes a pixel of the largest frame."""

MAX_TEXT_BYTES = 1 << 28
"""A list, an annotation or a file of class names: the lists of 2 million videos have 150 MB."""

MAX_SPARSE_CLASSES = 10_000
"""A list without class names may have labels below this whatever its length (a few lines of a large set),
above it only labels below its number of videos: a network has an output for each up to the largest."""


def frame_fault(width: int, height: int) -> str | None:
    """Why frames of this size (pixels) are refused; None: they are not."""
    if width * height > MAX_PIXELS:
        return f"has frames of {width} x {height} pixels, too large to decode (at most {MAX_PIXELS} pixels)"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"has frames of {width} x {height} pixels, too long and thin (at most {MAX_ASPECT} to 1)"
    return None


class NotRegularError(OSError):
    """A pipe, a device, a folder or a socket where a file is needed; `strerror` says which."""


class TooLargeError(OSError):
    """A file above the limit for its kind; `strerror` says by how much."""


def check_regular(path: str | os.PathLike[str]) -> int:
    """Size in bytes of the regular file at the end of all links; for files that a library opens by name.

    Raises:
        OSError: there is none. NotRegularError: it is something else, which might never end.
    """
    return _size(os.stat(path), path)


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> io.FileIO:
    """Open a file for reading bytes, unbuffered, if it is a regular one; a pipe does not make it wait.

    Args:
        path: links are followed.
        max_bytes: of the file; None: any.

    Raises:
        OSError: it cannot be opened.
        NotRegularError: it is no regular file.
        TooLargeError: it has more bytes.
    """
    # Without O_NONBLOCK, opening a pipe waits for its other end. It has no effect on regular files.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        size = _size(os.fstat(descriptor), path)
        if max_bytes is not None and size > max_bytes:
            raise TooLargeError(0, f"has {size} bytes, more than {max_bytes}", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return io.FileIO(descriptor)


def read_regular(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a regular file; see `open_regular`."""
    with open_regular(path, max_bytes) as file:
        return file.readall()


def _size(status: os.stat_result, path: str | os.PathLike[str]) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise NotRegularError(0, f"is {kind}", os.fspath(path))
    return status.st_size
