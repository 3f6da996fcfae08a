"""Makes small files that ask for much: each kills a reader that believes them, or takes gigabytes.

`HOSTILE` has a maker and the reason that must be given for every kind; `make_hostile` writes one.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image
from video_files import painted, write_video

SIDE = 16000
SAMPLES = 60_000_000


def never_shown(path: Path) -> None:
    """VP8 whose frames all say that they only serve as references for others."""
    write_video(path, 5, codec="libvpx", options={"auto-alt-ref": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in packets:
        data[data.index(packet)] &= ~0x10
    path.write_bytes(data)


def turns_over(path: Path) -> None:
    """H.264 whose frames lie on their side from the sixth on, as supplemental information says."""
    upright = write_video(path.with_name("upright.h264"), 6)
    with av.open(str(upright)) as container:
        stream = container.streams.video[0]
        turn = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        lying = b"".join(bytes(turned) for packet in packets for turned in turn.filter(packet))
    path.write_bytes(upright.read_bytes() + lying)
    upright.unlink()


def long_and_thin(path: Path, width: int = 1_000_000) -> None:
    """Scaled to a short side of 256 pixels, a frame of 1000000 x 1 takes 196 GB."""
    path.write_bytes(b"YUV4MPEG2 W%d H1 F30:1 Cmono\n" % width + (b"FRAME\n" + bytes(width)) * 2)


def png(side: int) -> bytes:
    """A black picture: 32 kB for a side of 16000 pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def larger_than_its_header(path: Path) -> None:
    """A MOV of 64 x 64 pixels whose PNGs are, from the second on, of 16000 x 16000."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        first = av.VideoFrame.from_ndarray(painted(1, 64, 64), format="rgb24")
        first.pts = 0
        container.mux(stream.encode(first))
        container.mux(stream.encode())
        bomb = png(SIDE)
        for place in range(1, 9):
            packet = av.Packet(bomb)
            packet.pts = packet.dts = place
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 30), stream, True
            container.mux(packet)


def table(data: bytearray, kind: bytes) -> int:
    """Where the contents of the first box of this kind begin."""
    return data.index(kind) + 4


def claims_samples(path: Path) -> None:
    """An MP4 of a few kB whose tables tell of 60 million samples: FFmpeg takes 2 GB to open it."""
    write_video(path, 3, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, table(data, b"stsz") + 4, 1, SAMPLES)  # each of one byte
    struct.pack_into(">I", data, table(data, b"stts") + 8, SAMPLES)
    struct.pack_into(">I", data, table(data, b"stsc") + 12, SAMPLES)
    path.write_bytes(data)


def claims_samples_in_a_large_file(path: Path) -> None:
    """The same, with a hole in the file that could hold so many."""
    claims_samples(path)
    os.truncate(path, 2 * SAMPLES)


def claims_samples_in_fragments(path: Path) -> None:
    write_video(path, 3, options={"bf": "0"}, container_options={"movflags": "frag_keyframe+empty_moov"})
    data = bytearray(path.read_bytes())
    run = table(data, b"trun")
    struct.pack_into(">II", data, run, 1, SAMPLES)  # nothing is stored for each: all are as the first
    path.write_bytes(data)


def claims_shifts(path: Path) -> None:
    """Shifts of time stamps for two billion samples, of which FFmpeg makes a table for HEVC."""
    write_video(path, 5, options={"bf": "2"})
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, table(data, b"ctts") + 8, 1 << 31)
    path.write_bytes(data)


def odd_codec(path: Path) -> None:
    """A well-known container with a codec that no camera writes."""
    write_video(path, 3, codec="zmbv", pixel_format="bgr0", container_format="avi")


def jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header says otherwise."""
    file = io.BytesIO()
    Image.fromarray(painted(1)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def frames(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A folder of eight frames, the first of them made by `make`, the others sound."""

    def write(path: Path) -> None:
        path.mkdir()
        for number in range(2, 9):
            Image.fromarray(painted(number)).save(path / f"{number:05d}.jpg")
        make(path / "00001.jpg")

    return write


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "never_shown.avi": (never_shown, "has no frame that is to be shown"),
    "turns_over.h264": (turns_over, "changes between upright and lying frames"),
    "long_and_thin.y4m": (long_and_thin, "has frames of 1000000 x 1 pixels, too long and thin"),
    "larger_than_its_header.mov": (larger_than_its_header, "frames have more than 67108864 pixels"),
    "claims_samples.mp4": (claims_samples, "claims 60000000 samples, more than its"),
    "claims_samples_large.mp4": (claims_samples_in_a_large_file, "claims 60000000 samples (at most 2000000)"),
    "claims_samples_in_fragments.mp4": (
        claims_samples_in_fragments,
        "claims 60000000 samples (at most 2000000)",
    ),
    "claims_shifts.mp4": (claims_shifts, "samples (at most 2000000)"),
    "odd_codec.avi": (odd_codec, "has video of codec zmbv, which is not read (allowed: h264,hevc,"),
    "huge_jpeg": (
        frames(lambda p: p.write_bytes(jpeg(13300, 13300))),
        "image 00001.jpg has frames of 13300 x 13300 pixels, too large",
    ),
    "bomb_jpeg": (
        frames(lambda p: p.write_bytes(jpeg(60000, 60000))),
        "image 00001.jpg is too large to decode",
    ),
    "thin_jpeg": (frames(lambda p: p.write_bytes(jpeg(60000, 1))), "60000 x 1 pixels, too long and thin"),
    "device_as_frame": (frames(lambda p: p.symlink_to("/dev/zero")), "image 00001.jpg is not a regular file"),
    "pipe_as_frame": (frames(os.mkfifo), "image 00001.jpg is not a regular file"),
    "sparse_frame": (
        frames(lambda p: (p.touch(), os.truncate(p, 1 << 40))),
        "image 00001.jpg has 1099511627776 bytes, more than",
    ),
}
"""Name of the file or folder: (its maker, part of the reason that every reader must give)."""


def make_hostile(name: str, folder: Path) -> Path:
    """Write the file or folder `name` of `HOSTILE` into a folder."""
    HOSTILE[name][0](folder / name)
    return folder / name
