"""Exact, selective video decoding with PyAV, behind PyTorchVideo's `Video` interface.

One pass over the file collects its compressed packets (a few MB). Their sorted time stamps are the frame
table, so that neither counts, durations nor rates in the header are trusted. Wanted frames are then decoded
from the key frame before them and nothing else is converted to RGB.

One piece, though long: packets, frame table, key frames and the walk over them are one data structure, which
no other module needs to know.

Shape letters: T frames, C = 3 colours (RGB), H height, W width.
"""

from __future__ import annotations

import base64
import collections
import functools
import itertools
import os
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition
from pytorchvideo.data.video import Video, VideoPathHandler

from dtf.data import bounds
from dtf.data.boxes import index_fault
from dtf.data.reader import FrameReader, VideoError
from dtf.files import NotRegularError, check_regular
from dtf.text import printable

# What is wrong with a video is said by its error. torchvision below 0.29, which PyTorchVideo has loaded, lets
# FFmpeg print as well.
av.logging.set_level(None)

PACKET_CAP_BYTES = 64 << 20
"""More compressed bytes than this, with what holding a packet costs, are not held in memory: the file is then
read again by seeking."""

_PACKET_BYTES = 768
"""What a packet takes besides its data: the objects of PyAV and FFmpeg around it."""

MAX_FILLED_FRACTION = 0.5
"""A read of which more than this share had to be filled from neighbouring frames is refused."""

MAX_DAMAGED_FRACTION = 0.125
"""A read is refused when more than this share of its packets is damaged: FFmpeg conceals a few well, but what
is predicted from them looks wrong up to the next key frame."""

# Demuxers of plain video files. Playlists and concatenations (hls, dash, concat, image sequences ...) are
# left out on purpose: such a file, whatever its name, could make FFmpeg open other files or network
# addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,nut,mxf,ivf,obu,h264,"
    "hevc,m4v,h263,av1,gif,apng,swf,dv,wtv,rm,vob,y4m,yuv4mpegpipe,mjpeg,nsv,bink,smk,gxf,amv"
)
# Codecs of cameras, phones, the web and of data sets, by FFmpeg's names: what many use is well tested. Screen
# recorders, games and rare experiments are left out, and with them most of FFmpeg's decoders.
_CODECS = (
    "h264,hevc,vvc,av1,vp6,vp6a,vp6f,vp7,vp8,vp9,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,msmpeg4v2,msmpeg4v3,wmv1,"
    "wmv2,wmv3,vc1,h261,h263,h263i,h263p,flv1,theora,rv10,rv20,rv30,rv40,svq1,svq3,cinepak,indeo3,indeo5,mjpeg,"
    "mjpegb,amv,jpeg2000,prores,dnxhd,cfhd,dvvideo,ffv1,ffvhuff,huffyuv,utvideo,magicyuv,lagarith,rawvideo,v210,"
    "qtrle,msvideo1,msrle,png,apng,gif"
)
_CODEC_NAMES = frozenset(_CODECS.split(","))
_FORMAT_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "file",
    # By the names of decoders. FFmpeg opens some, those of sound too, to find what a header leaves out.
    "codec_whitelist": f"{_CODECS},libdav1d,libaom-av1,libvpx,libvpx-vp9,flv",
}

# Codecs for which leaving out unreferenced frames is exact. AV1 reads the flag once at open and would then
# drop every frame; VP8 and VP9 ignore it.
_SKIPS_NONREF = frozenset({"h264", "hevc", "mpeg4"})

_NO_STAMP = -(1 << 63)  # as FFmpeg says it

_GAP_PACKETS = 64

# PyAV 19 has dropped the argument: no text of a file can fail there any more.
_OPEN_OPTIONS = {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}

# Three frames, one of which no other refers to: H.264 of 16 x 16 pixels in FLV.
_TINY_VIDEO = base64.b64decode(
    "RkxWAQEAAAAJAAAAAAkAACcAAAAAAAAAFwAAAAABTUAK/+EAE2dNQAr29CAAAAMAIAAABkHiRKcBAARozgRyAAAAMgkAABMAAAAAAAAA"
    "FwEAACgAAAAKZYiEA6JigACG/gAAAB4JAAAUAAAoAAAAACcBAABQAAAAC0GaKAJqJxQABAHwAAAAHwkAAA8AAFAAAAAAJwEAAAAAAAAG"
    "AZ5FA9KAAAAAGg=="
)


@functools.cache
def check_pyav() -> None:
    """Read a tiny sound video, once in a process.

    With a PyAV whose interface has changed no video can be read; it must not look as if all of them were
    broken. Called where a command begins, before any video is opened.

    Raises:
        ValueError: names the installed PyAV and what fails with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tiny.flv")
        with open(path, "wb") as file:
            file.write(_TINY_VIDEO)
        try:
            with VideoReader(path) as reader:
                frames = reader.read([0, 2])
                sound = reader.num_frames == 3 and frames.shape == (2, 3, 16, 16) and not reader.filled
        except Exception as error:  # whatever it is, it is not the video's fault
            raise _unfit(f"{type(error).__name__}: {error}") from error
    if not sound:
        raise _unfit("it returns other frames than those asked for")


def _unfit(reason: str) -> ValueError:
    newest = int(av.__version__.partition(".")[0])
    return ValueError(
        f"PyAV {av.__version__} does not work with this version of dtf ({printable(reason)}): "
        f"take another release of it, as with pip install 'av>=18,<{newest}', or a newer dtf"
    )


def open_stream(path: str) -> tuple[Any, Any]:
    """Open a video file with PyAV once it has proved to be one that may be opened.

    Args:
        path: absolute. FFmpeg would take a relative one that holds a colon for "protocol:rest".

    Returns:
        The container and its best video stream.

    Raises:
        VideoError: no regular file, no video in a container of its own (see `_FORMATS`), or one that asks for
            more than `dtf.data.bounds` allows.
    """
    try:
        if check_regular(path) == 0:  # opening a pipe would wait for its other end
            raise VideoError(path, "is empty (0 bytes)")
        if fault := index_fault(path):
            raise VideoError(path, fault)
        container = _open_container(path)
    except FileNotFoundError as error:
        reason = "is a link to a missing file" if os.path.islink(path) else "does not exist"
        raise VideoError(path, reason) from error
    except NotRegularError as error:
        raise VideoError(path, str(error.strerror)) from error
    except (av.FFmpegError, OSError) as error:
        reason = f"cannot be opened as a video ({error.strerror or type(error).__name__})"
        raise VideoError(path, reason) from error
    try:
        return container, _best_stream(path, container)
    except BaseException:
        container.close()
        raise


def _open_container(path: str) -> Any:
    open_file: Any = av.open  # its types differ from release to release
    return open_file(
        path, mode="r", options=_codec_options(), container_options=_FORMAT_OPTIONS, **_OPEN_OPTIONS
    )


def _codec_options() -> dict[str, str]:
    """The decoder itself refuses frames that turn out larger than the header says."""
    return {"max_pixels": str(bounds.MAX_PIXELS)}


def _best_stream(path: str, container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        kinds = sorted({s.type for s in container.streams if s.type})
        raise VideoError(path, f"has no video stream (only {', '.join(kinds) or 'nothing readable'})")
    if stream.disposition & Disposition.attached_pic:
        raise VideoError(path, "has no video stream (only a cover picture)")
    codec = stream.codec_context
    if codec is None:
        raise VideoError(path, "its video codec is not known to the installed FFmpeg")
    if (name := codec.codec.canonical_name) not in _CODEC_NAMES:
        raise VideoError(path, f"has video of codec {name}, which is not read (allowed: {_CODECS})")
    if codec.width > 0 and codec.height > 0 and (fault := bounds.frame_fault(codec.width, codec.height)):
        raise VideoError(path, fault)
    codec.options = _codec_options()
    return stream


class VideoReader(FrameReader, Video):
    """Frames of one video file by index, exactly and at low cost.

    Frame indices count the frames as a player shows them: in order of presentation, edit lists applied,
    without an undecodable beginning. Rotation metadata is applied. Audio is never opened.

    Args:
        path: the video file; its extension is not trusted.
        packet_cap_bytes: above this size of compressed video the packets are not held in memory.

    Attributes:
        path: absolute path.
        name: file name (part of what PyTorchVideo's data set expects).
        num_frames: number of frames, at least 1. Where time stamps are unusable (AVI, raw streams) this is
            the number of packets, which equals the number of frames in sound files.
        fps: mean frames per second of the whole video.
        errors: damaged packets met so far.
        filled: wanted frames that never came and were replaced by the nearest decoded frame.
        rotation: degrees counter-clockwise by which the last frame was turned to stand upright.

    Raises:
        VideoError: the file is missing, empty, no video, or has no frame.
    """

    def __init__(self, path: str | os.PathLike[str], *, packet_cap_bytes: int = PACKET_CAP_BYTES) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.name = os.path.basename(self.path)
        self._num_fed = 0  # packets given to the decoder
        self.rotation = 0
        self._is_turned: bool | None = None  # whether the first frame lay on its side
        self._too_large = False  # a packet asked for a frame above the limit
        self._packet_cap_bytes = packet_cap_bytes
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._container: Any = None
        self._open()
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    # ---- opening -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._container, self._stream = open_stream(self.path)
        self._codec = self._stream.codec_context
        # One thread: frame threads cost 8-30 % more CPU a clip and do not mix with DataLoader workers.
        self._codec.thread_count = 1

    def _scan(self) -> None:
        """Demux once and build the frame table."""
        packets: list[Any] | None = []
        held_bytes = 0
        pts, dts = array("q"), array("q")
        is_key, is_shown = bytearray(), bytearray()
        hides_frames = self._codec.name in ("vp8", "libvpx")
        most, cap_bytes = bounds.MAX_PACKETS, self._packet_cap_bytes
        try:
            for packet in self._container.demux(self._stream):
                if not (size := packet.size):  # the flush packet at the end, or a dropped frame of an AVI
                    continue
                if len(pts) == most:
                    raise VideoError(self.path, f"has more than {most} frames")
                pts.append(_NO_STAMP if (stamp := packet.pts) is None else stamp)
                dts.append(_NO_STAMP if (stamp := packet.dts) is None else stamp)
                is_key.append(packet.is_keyframe)
                # Discarded by an edit list, or a VP8 frame that only serves as a reference (show_frame bit
                # 0).
                is_shown.append(
                    not packet.is_discard and not (hides_frames and not memoryview(packet)[0] & 0x10)
                )
                if packets is not None:
                    held_bytes += size + _PACKET_BYTES
                    if held_bytes > cap_bytes:
                        packets = None
                    else:
                        packets.append(packet)
        except (av.FFmpegError, OSError):
            self.errors += 1  # unreadable from here on: what came before is the video
        self._packets = packets
        self._num_packets = len(pts)
        if not pts:
            raise VideoError(self.path, "has a video stream without any frame")
        width, height = self._codec.width, self._codec.height
        self._size = (width, height) if width > 0 and height > 0 else None
        self._pts, self._dts = np.array(pts), np.array(dts)  # of every packet, in file order
        self._build_table(np.frombuffer(is_key, bool), np.frombuffer(is_shown, bool))

    def _build_table(self, is_key: np.ndarray, is_shown: np.ndarray) -> None:
        rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        self.fps = float(rate) if rate else 0.0
        pts = self._pts
        shown = np.flatnonzero(is_shown)
        if not len(shown):
            raise VideoError(self.path, "has no frame that is to be shown")
        shown_pts = np.sort(pts[shown])
        self._sequential = bool(
            "avi" in self._container.format.name.split(",")
            or shown_pts[0] == _NO_STAMP  # the lowest of all
            or (shown_pts[1:] == shown_pts[:-1]).any()
            or not is_key.any()
        )
        if self._sequential:
            self.num_frames = len(shown)
            self._times = np.arange(self.num_frames) / (self.fps or 1.0)
            return
        keys = np.flatnonzero(is_key)
        shown = shown[shown >= keys[0]]
        if not len(shown):
            raise VideoError(self.path, "has no frame at or after its first key frame")
        shown = shown[np.argsort(pts[shown], kind="stable")]
        self._keys = keys
        self._set_table(shown)
        # Frames shown before the first key frame but stored after it may need what was cut away.
        leading = self._position[self._pts[self._position] < pts[keys[0]]]
        if len(leading) and is_shown[keys[0]]:
            stop = int(leading.max()) + 1
            decoded = {frame.pts for frame in self._decode_range(int(keys[0]), stop)}
            lost = [i for i in leading if int(pts[i]) not in decoded]
            self._set_table(self._position[~np.isin(self._position, lost)])
        self.num_frames = len(self._position)
        ticks = self._pts[self._position] - self._pts[self._position[0]]
        if ticks[-1] < 0:
            raise VideoError(self.path, "has time stamps further apart than 63 bits can count")
        self._times = ticks * float(self._stream.time_base)
        if self.num_frames > 1:
            self.fps = float((self.num_frames - 1) / (int(ticks[-1]) * self._stream.time_base))

    def _set_table(self, position: np.ndarray) -> None:
        """`position[i]` is the place in the file of the packet that holds frame i."""
        self._position = position
        self._shown_pts = array("q", self._pts[position].tobytes())

    def _index_of(self, pts: int | None) -> int | None:
        """The frame with this time stamp, or None."""
        if pts is None:
            return None
        index = bisect_left(self._shown_pts, pts)
        return index if index < len(self._shown_pts) and self._shown_pts[index] == pts else None

    # ---- PyTorchVideo's interface --------------------------------------------------------------------------

    @property
    def duration(self) -> float:
        """Seconds from the start of the first to the end of the last frame."""
        return float(self._times[-1]) + 1.0 / (self.fps or 1.0)

    @property
    def frame_seconds(self) -> np.ndarray:
        """Start of each frame in seconds, (num_frames,) float64; the first is 0."""
        return self._times

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, torch.Tensor | None] | None:
        """All frames shown in [start_sec, end_sec), for PyTorchVideo's data sets and samplers.

        Differs from `EncodedVideo`: in a gap of a variable-rate video the frame then on display is returned
        instead of nothing, and the last frame is never lost. `read` needs far less memory and time.

        Returns:
            {"video": (C, T, H, W) float32 in 0..255, "audio": None}, or None when start_sec is not inside the
            video (PyTorchVideo's convention).
        """
        start, end = float(start_sec), float(end_sec)
        if not 0 <= start < self.duration or end <= start:
            return None
        tolerance = 1e-6  # below any frame distance; start and end are often rounded fractions
        first = int(np.searchsorted(self._times, start - tolerance))
        stop = int(np.searchsorted(self._times, end - tolerance))
        if stop <= first:
            first = max(0, int(np.searchsorted(self._times, start + tolerance, side="right")) - 1)
            stop = first + 1
        return {"video": self.read(range(first, stop)).transpose(0, 1).float(), "audio": None}

    def close(self) -> None:
        """Free file and decoder. Calling it again does nothing."""
        super().close()
        if self._container is not None:
            self._container.close()
            self._container = None
            self._packets = None

    # ---- reading by index ----------------------------------------------------------------------------------

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`. VideoError: no frame, or less than half of the wanted ones, could be decoded."""
        wanted = self._wanted(indices)
        yield from self._checked(
            len(wanted), self._iter_counted(wanted) if self._sequential else self._iter_by_stamp(wanted)
        )

    def iter_forward(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Like `iter_frames` for videos of any length: strictly by rising index, in one pass, with the memory
        of one frame.

        A wanted frame that does not come is replaced by the next one that does, at the end by the last one.
        """
        wanted = self._wanted(indices)
        yield from self._checked(
            len(wanted), self._iter_counted(wanted) if self._sequential else self._iter_onward(wanted)
        )

    def _checked(
        self, num_wanted: int, frames: Iterator[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The frames, and VideoError where too many of them are damaged or made up."""
        filled, errors, num_fed = self.filled, self.errors, self._num_fed
        try:
            yield from frames
        except (av.FFmpegError, OSError) as error:  # the file went away or cannot be read any more
            reason = f"cannot be read ({error.strerror or type(error).__name__})"
            raise VideoError(self.path, reason) from error
        filled, errors, num_fed = self.filled - filled, self.errors - errors, self._num_fed - num_fed
        if errors > MAX_DAMAGED_FRACTION * num_fed:
            raise self._fault(f"is damaged: {errors} of {num_fed} packets could not be decoded")
        if filled > MAX_FILLED_FRACTION * num_wanted:
            raise self._fault(f"{filled} of {num_wanted} wanted frames could not be decoded")

    def _fault(self, reason: str) -> VideoError:
        """What went wrong in decoding, with the cause where it is known."""
        cause = f", since frames have more than {bounds.MAX_PIXELS} pixels" if self._too_large else ""
        return VideoError(self.path, reason + cause)

    def _iter_onward(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        todo = collections.deque(wanted.tolist())
        positions = self._position[wanted]
        wanted_packets = set(positions.tolist())
        ranges = self._ranges(positions)
        if self._packets is None:
            # Each range is another seek in the file; a short gap is cheaper to decode.
            ranges = _join(ranges, _GAP_PACKETS)
        last: np.ndarray | None = None
        for start, stop in ranges:
            for frame in self._decode_range(start, stop, wanted_packets):
                index = self._index_of(frame.pts)
                if index is None or not todo or index < todo[0]:
                    continue
                last = self._to_array(frame)
                while todo and todo[0] <= index:
                    self.filled += todo[0] < index
                    yield todo.popleft(), last
        if todo and last is None:
            raise self._fault("no frame could be decoded")
        self.filled += len(todo)
        for index in todo:
            assert last is not None
            yield index, last

    def _iter_by_stamp(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        positions = self._position[wanted]
        missing = dict(zip(self._pts[positions].tolist(), wanted.tolist(), strict=True))  # by time stamp
        wanted_packets = set(positions.tolist())
        for start, stop in self._ranges(positions):
            for frame in self._decode_range(start, stop, wanted_packets):
                index = missing.pop(frame.pts, None)
                if index is not None:
                    yield index, self._to_array(frame)
        if missing:
            yield from self._recover(set(missing.values()))

    def _ranges(self, positions: np.ndarray) -> list[tuple[int, int]]:
        """Ranges [start, stop) of packets, each from a key frame, so that all `positions` come out."""
        key_of = np.searchsorted(self._keys, positions, side="right") - 1
        # A frame that is shown before the key frame it is stored behind (open GOP) needs the GOP before.
        while len(
            early := np.flatnonzero((self._pts[self._keys[key_of]] > self._pts[positions]) & (key_of > 0))
        ):
            key_of[early] -= 1
        ranges: list[tuple[int, int]] = []
        for start, stop in sorted(zip(self._keys[key_of].tolist(), (positions + 1).tolist(), strict=True)):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
            else:
                ranges.append((start, stop))
        return ranges

    def _recover(self, missing: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Last resort for frames that did not come: decode everything, then take the nearest frame."""
        nearest: dict[int, tuple[int, Any]] = {}
        for frame in self._decode_range(0, self._num_packets):
            index = self._index_of(frame.pts)
            if index is None:
                continue
            if index in missing:
                missing.discard(index)
                nearest.pop(index, None)
                yield index, self._to_array(frame)
            for lost in missing:
                if lost not in nearest or abs(index - lost) < abs(nearest[lost][0] - lost):
                    nearest[lost] = (index, frame)
        if len(nearest) < len(missing):
            raise self._fault("no frame could be decoded")
        self.filled += len(missing)
        for lost in sorted(missing):
            yield lost, self._to_array(nearest[lost][1])

    def _iter_counted(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Without usable time stamps: decode from the start and count."""
        todo = wanted.tolist()
        last = None
        for count, frame in enumerate(self._decode_range(0, self._num_packets)):
            last = frame
            if count == todo[0]:
                yield todo.pop(0), self._to_array(frame)
                if not todo:
                    return
        if last is None:
            raise self._fault("no frame could be decoded")
        self.filled += len(todo)
        for index in todo:
            yield index, self._to_array(last)

    def _decode_range(self, start: int, stop: int, wanted: Collection[int] | None = None) -> Iterator[Any]:
        """Decode packets [start, stop), which begin at a key frame; frames come in order of presentation.

        Of frames that no other refers to only those in `wanted` packets are decoded, where the codec allows.
        """
        codec = self._codec
        skips = wanted is not None and codec.name in _SKIPS_NONREF
        skipping = False
        codec.flush_buffers()
        try:
            for position, packet in enumerate(self._read_packets(start, stop), start):
                if skips and skipping is (position in wanted):  # type: ignore[operator]
                    skipping = not skipping
                    codec.skip_frame = "NONREF" if skipping else "DEFAULT"
                self._num_fed += 1
                try:
                    yield from codec.decode(packet)
                except av.FFmpegError:
                    self._note_error()
            try:
                yield from codec.decode(None)
            except av.FFmpegError:
                self._note_error()
        finally:
            if skipping:
                codec.skip_frame = "DEFAULT"
            if self._container is not None:
                codec.flush_buffers()

    def _note_error(self) -> None:
        self.errors += 1
        # FFmpeg forgets a size that it refuses, or keeps it.
        pixels = self._codec.width * self._codec.height
        self._too_large = self._too_large or pixels == 0 or pixels > bounds.MAX_PIXELS

    def _read_packets(self, start: int, stop: int) -> Iterable[Any]:
        if self._packets is not None:
            return self._packets[start:stop]
        return self._seek_packets(start, stop)

    def _seek_packets(self, start: int, stop: int) -> Iterator[Any]:
        """Packets [start, stop) read from the file again, through a container of their own."""
        dts, pts = int(self._dts[start]), int(self._pts[start])
        target = dts if dts != _NO_STAMP else pts
        for seek in (True, False):  # where seeking fails or lands too late, read from the beginning
            with _open_container(self.path) as container:
                stream = container.streams[self._stream.index]
                packets: Iterator[Any] = (packet for packet in container.demux(stream) if packet.size)
                position = 0
                if seek:
                    if self._sequential or target == _NO_STAMP:
                        continue
                    try:
                        container.seek(target, stream=stream, backward=True)
                    except av.FFmpegError:
                        continue
                    first = next(packets, None)
                    if first is None:
                        continue
                    dts = _NO_STAMP if first.dts is None else first.dts
                    pts = _NO_STAMP if first.pts is None else first.pts
                    places = np.flatnonzero((self._dts == dts) & (self._pts == pts))
                    if len(places) != 1 or places[0] > start:
                        continue
                    position = int(places[0])
                    packets = itertools.chain([first], packets)
                for place, packet in enumerate(packets, position):
                    if place >= stop:
                        return
                    if place >= start:
                        yield packet
                return

    def _to_array(self, frame: Any) -> np.ndarray:
        """(H, W, C) uint8 at the size of the first frame, upright."""
        self._check_frame(frame)
        if self._size is None:
            self._size = (frame.width, frame.height)
        width, height = self._size
        # One reformatter with one thread: the conveniences of VideoFrame build a new scaler for each frame.
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        if self.rotation:
            pixels = np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))
        return pixels

    def _check_frame(self, frame: Any) -> None:
        """Note the rotation of a decoded frame, before memory is taken for its RGB."""
        if fault := bounds.frame_fault(frame.width, frame.height):
            raise VideoError(self.path, fault)
        self.rotation = frame.rotation % 360
        is_turned = round(self.rotation / 90) % 2 == 1
        if self._is_turned is None:
            self._is_turned = is_turned
        elif self._is_turned != is_turned:
            raise VideoError(self.path, "changes between upright and lying frames on the way")


def _join(ranges: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Sorted ranges [start, stop), those joined that are at most `gap` apart."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class ReaderPathHandler(VideoPathHandler):
    """Lets PyTorchVideo's data sets use `VideoReader`: `dataset.video_path_handler = ReaderPathHandler()`."""

    def video_from_path(
        self, filepath: str, decode_audio: bool = False, decoder: str = "pyav", fps: int = 30
    ) -> VideoReader:
        """The video at `filepath`; the other arguments are for PyTorchVideo's decoders and change nothing."""
        return VideoReader(filepath)
