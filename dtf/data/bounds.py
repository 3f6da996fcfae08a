"""What one video, list or image may ask for: the limits, in one place.

A file is data from elsewhere. Its header may be wrong on purpose, and what it decodes to has little to do
with its size: 90 kB of PNG in a MOV are frames of 16000 x 16000 pixels. Each limit is far above real data and
keeps a reader below a gigabyte or two. Who has larger data raises the constant here.
"""

from __future__ import annotations

import os

from dtf.files import open_regular

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


class TooLargeError(OSError):
    """A file above the limit for its kind; `strerror` says by how much."""


def read_regular(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        path: links are followed.
        max_bytes: of the file.

    Raises:
        OSError: it cannot be opened.
        NotRegularError: it is no regular file.
        TooLargeError: it has more bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise TooLargeError(0, f"has {size} bytes, more than {max_bytes}", os.fspath(path))
        return file.readall()
