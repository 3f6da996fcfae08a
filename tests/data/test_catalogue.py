"""Every kind of odd or broken video that readers stumble over: right frames or one reason.

`test_decode.py` proves exact pixels for the common codecs and containers; here each kind of the catalogue is
a small file with its frame numbers painted in, and what comes out is the whole sample of the data sets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from quick import quick
from video_files import numbers_of, painted, write_audio_only, write_silence, write_video

from dtf.data import bounds
from dtf.data.dataset import EvalDataset, TrainDataset
from dtf.data.decode import VideoError, VideoReader
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TestTransform, TrainTransform

SQUARE = (48, 48)
X265_SMALLEST = (64, 64)
VP9_FAST = {"deadline": "realtime", "cpu-used": "8", "b": "500k"}


# ---- makers: (path) -> numbers of the frames that must be found --------------------------------------------


def plain(numbers: int | list[int] = 20, **settings) -> Callable[[Path], list[int]]:
    def make(path: Path) -> list[int]:
        write_video(path, numbers, **{"size": SQUARE, **settings})
        return list(range(numbers)) if isinstance(numbers, int) else numbers

    return make


def without_duration(path: Path) -> list[int]:
    """As a live stream is stored: neither duration nor index in the header."""
    write_video(path, 30, size=SQUARE, codec="libvpx-vp9", options=VP9_FAST, container_options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    return list(range(30))


def cut_data(path: Path) -> list[int]:
    """Index first, data cut at 60 %."""
    write_video(path, 60, size=SQUARE, options={"bf": "0"}, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with VideoReader(path) as reader:
        assert 10 < reader.num_frames < 60
        return [*range(reader.num_frames - 1), reader.num_frames - 2]  # the last packet is itself cut


def one_damaged_packet(path: Path) -> list[int]:
    """FFmpeg conceals it; the frames around it are right. Returned: the numbers that are."""
    write_video(path, 60, size=SQUARE, gop=60, options={"bf": "0", "x264-params": "scenecut=0"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    position, size = packets[-1]
    data[position + 6 : position + size] = bytes(size - 6)
    path.write_bytes(data)
    return [*range(59), 58]


def repeated_stamps(path: Path) -> list[int]:
    whole = write_video(path.with_name("whole.mkv"), 30, size=SQUARE, options={"bf": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = packet.pts // 100 * 100
                packet.stream = stream
                target.mux(packet)
    return list(range(30))


def cut_in_a_gop(path: Path) -> list[int]:
    whole = write_video(path.with_name("w.ts"), 40, size=SQUARE, options={"x264-params": "scenecut=0"})
    with av.open(str(whole)) as container:
        starts = [p.pos for p in container.demux(video=0) if p.size]
    data = whole.read_bytes()
    path.write_bytes(data[: starts[0]] + data[starts[4] :])
    return list(range(12, 40))


def size_change(path: Path) -> list[int]:
    small = write_video(path.with_name("small.h264"), 6, size=SQUARE)
    large = write_video(path.with_name("large.h264"), range(6, 12), size=(96, 96))
    path.write_bytes(small.read_bytes() + large.read_bytes())
    return list(range(12))


def cover_picture(path: Path) -> list[int]:
    """A picture marked as cover that comes before the film, as some phones and editors store it."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=30, options={"crf": "18"})
        film.width, film.height, film.pix_fmt = *SQUARE, "yuv420p"
        cover = add_cover(container)
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(painted(number, 48, 48), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(film.encode(frame))
        container.mux(film.encode())
        mux_cover(container, cover)
    # FFmpeg writes the tracks first. Within the index, boxes may come in any order: put the metadata first.
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    boxes, place = [], start + 8
    while place < end:
        size = int.from_bytes(data[place : place + 4], "big")
        boxes.append(data[place : place + size])
        place += size
    boxes.sort(key=lambda box: (b"mvhd", b"udta").index(box[4:8]) if box[4:8] in (b"mvhd", b"udta") else 2)
    path.write_bytes(data[: start + 8] + b"".join(boxes) + data[end:])
    with av.open(str(path)) as container:
        assert container.streams[0].disposition & Disposition.attached_pic
    return list(range(20))


def only_a_cover(path: Path) -> None:
    """Sound with a cover picture."""
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), add_cover(container)
        write_silence(container, sound, 1.0)
        mux_cover(container, cover)


def add_cover(container: av.container.OutputContainer) -> av.VideoStream:
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = *SQUARE, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    return cover


def mux_cover(container: av.container.OutputContainer, cover: av.VideoStream) -> None:
    picture = av.VideoFrame.from_ndarray(painted(4095, 48, 48), format="rgb24")
    picture.pts, picture.time_base = 0, Fraction(1, 1)
    container.mux(cover.encode(picture))
    container.mux(cover.encode())


RIGHT: dict[str, Callable[[Path], list[int]]] = {
    "webm_named.mp4": plain(codec="libvpx-vp9", container_format="webm", options=VP9_FAST),
    "avi_named.mp4": plain(container_format="avi"),
    "ssv2_like.webm": plain(36, codec="libvpx-vp9", fps=12, options=VP9_FAST),
    "h264.mkv": plain(),
    "without_duration.webm": without_duration,
    "without_duration.mkv": lambda path: without_duration(path),
    "one_frame.mp4": plain(1),
    "one_frame.webm": plain(1, codec="libvpx-vp9", options=VP9_FAST),
    "three_frames.mp4": plain(3),
    "variable_rate.mp4": plain(
        40, pts=np.cumsum(np.random.default_rng(1).integers(1, 90, 40)).tolist(), ticks=600
    ),
    "late_start.mkv": plain(40, pts=list(range(150, 190))),
    "late_start.ts": plain(40, pts=list(range(150, 190))),
    "edit_list.mp4": lambda path: plain(
        40, pts=list(range(-10, 30)), container_options={"avoid_negative_ts": "disabled"}
    )(path)[10:],
    "b_frames.avi": plain(40),
    "mpeg4_b_frames.avi": plain(40, codec="mpeg4", options={"bf": "2", "b": "800k"}),
    "repeated_stamps.mkv": repeated_stamps,
    "cut_in_a_gop.ts": cut_in_a_gop,
    "open_gop.mp4": plain(
        40, codec="libx265", size=X265_SMALLEST, gop=10, options={"x265-params": "log-level=none:open-gop=1"}
    ),
    "raw.h264": plain(40),
    "size_change.h264": size_change,
    "cover_picture_first.mp4": cover_picture,
    "yuv444.mp4": plain(pixel_format="yuv444p"),
    "h264_10_bit.mp4": plain(pixel_format="yuv420p10le"),
    "hevc_10_bit.mp4": plain(
        codec="libx265",
        size=X265_SMALLEST,
        pixel_format="yuv420p10le",
        options={"x265-params": "log-level=none"},
    ),
    "vp9_10_bit.webm": plain(codec="libvpx-vp9", pixel_format="yuv420p10le", options=VP9_FAST),
    "grey.mp4": plain(pixel_format="gray"),
    "full_range.mov": plain(codec="mjpeg", pixel_format="yuvj420p"),
    "av1.mp4": plain(codec="libsvtav1", size=(64, 64), options={"preset": "12", "crf": "30"}, gop=10),
    "uhd_2160p.mp4": plain(3, codec="mpeg4", size=(2160, 2160), options={"b": "8M"}),
    "blanks (and) ä%20:x.mp4": plain(),
    "audio_longer_than_film.mp4": plain(audio_seconds=3.0),
    "data_cut_at_60_percent.mp4": cut_data,
    "one_damaged_packet.mp4": one_damaged_packet,
}


KEPT = ("without_duration.webm", "one_frame.mp4", "variable_rate.mp4", "late_start.mkv", "edit_list.mp4")
KEPT += ("cut_in_a_gop.ts", "size_change.h264", "cover_picture_first.mp4")  # by test-quick


@pytest.mark.parametrize("name", quick(RIGHT, *KEPT))
def test_odd_videos_give_right_clips(name, tmp_path):
    """Evaluation and training give exactly the frames that their sampler asked for."""
    path = tmp_path / name
    try:
        numbers = RIGHT[name](path)
    except (av.codec.codec.UnknownCodecError, av.ArgumentError) as error:
        if "avcodec_open2" not in str(error) and not isinstance(error, av.codec.codec.UnknownCodecError):
            raise
        pytest.skip(f"the encoders of this PyAV cannot make the file: {error}")
    index = VideoIndex(tmp_path, [name], [0])
    sampler = FrameSampler(8, 2)
    dataset = EvalDataset(index, sampler, TestTransform(48), num_clips=3, max_read_seconds=60)
    sample = dataset[0]
    assert sample["error"] == []
    expected = sampler.test(len(numbers), 30.0, 3)
    for view, wanted in zip(sample["video"].numpy(), expected, strict=True):
        assert numbers_of(view) == [numbers[i] for i in wanted]

    training = TrainDataset(index, sampler, TrainTransform(48, crop="center", flip=0.0), seed=1)
    for epoch in range(2):
        sample = training[epoch, 0]
        wanted = sampler.train(len(numbers), 30.0, np.random.default_rng((1, epoch, 0, 0)))
        assert sample["error"] == []
        assert numbers_of(sample["video"][0].numpy()) == [numbers[i] for i in wanted]


# ---- files that cannot be used -----------------------------------------------------------------------------


def flipped_bytes(path: Path) -> None:
    """A tenth of the data overwritten with noise."""
    write_video(path, 60, size=(96, 96), container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    rng = np.random.default_rng(0)
    for place in rng.integers(start, len(data), (len(data) - start) // 10):
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data)


def no_index(path: Path) -> None:
    data = write_video(path, 30, size=SQUARE).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def no_frames(path: Path) -> None:
    """A video stream whose track has no sample: the boxes of the sample table say zero."""
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_custom"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SQUARE, "yuv420p"
        container.start_encoding()


def listed_outside(path: Path, text: str) -> None:
    """A text that would make FFmpeg open another file, named like a video."""
    secret = write_video(path.with_name("secret.mp4"), 5, size=SQUARE)
    path.write_text(text.format(secret=secret, name=secret.name))


SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero_bytes.mp4": (Path.touch, "is empty (0 bytes)"),
    "html.mp4": (lambda p: p.write_text("<html>404</html>\n" * 50), "cannot be opened as a video"),
    "noise.mp4": (
        lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)),
        "cannot be opened as a video",
    ),
    "cut_before_index.mp4": (no_index, "cannot be opened as a video"),
    "flipped_bytes.mp4": (flipped_bytes, "could not be decoded"),
    "audio_only.mp4": (write_audio_only, "has no video stream (only audio)"),
    "only_a_cover.mp4": (only_a_cover, "has no video stream (only a cover picture)"),
    "no_frames.mp4": (no_frames, "without any frame"),
    "missing.mp4": (lambda p: None, "does not exist"),
    "dangling.mp4": (lambda p: p.symlink_to("nowhere.mp4"), "is a link to a missing file"),
    "fifo.mp4": (os.mkfifo, "is not a regular file"),
    "hls.mp4": (
        lambda p: listed_outside(p, "#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"),
        "cannot be opened as a video",
    ),
    "concat.mp4": (
        lambda p: listed_outside(p, "ffconcat version 1.0\nfile {name}\n"),
        "cannot be opened as a video",
    ),
    "network.mp4": (lambda p: p.write_text(SDP), "cannot be opened as a video"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_videos_give_one_reason(name, tmp_path):
    """Evaluation keeps the video with its reason; training names it and takes another."""
    make, reason = BROKEN[name]
    make(tmp_path / name)
    write_video(tmp_path / "sound.mp4", [7] * 20, size=SQUARE)
    index = VideoIndex(tmp_path, [name, "sound.mp4"], [3, 4])

    sample = EvalDataset(index, FrameSampler(16, 2), TestTransform(48), max_read_seconds=60)[0]
    [error] = sample["error"]
    assert error.path == str(tmp_path / name)
    assert reason in error.reason
    assert "\n" not in str(error)
    assert (sample["label"], sample["video_index"]) == (3, 0)
    assert not sample["video"].any()

    plain_crop = TrainTransform(48, crop="center", flip=0.0)
    sample = TrainDataset(index, FrameSampler(16, 2), plain_crop, max_read_seconds=60)[0, 0]
    assert reason in sample["error"][0].reason
    assert {error.path for error in sample["error"]} == {str(tmp_path / name)}
    assert (sample["label"], sample["video_index"]) == (4, 1)
    assert numbers_of(sample["video"][0].numpy()) == [7] * 16


def test_memory_follows_the_clip_not_the_file(tmp_path):
    """80 frames of 1080 x 1080 are 280 MB; a clip of them never exists at its native size."""
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("the peak of memory can only be reset on Linux")

    def megabytes(field: str) -> float:
        return int(status.read_text().split(f"{field}:")[1].split()[0]) / 1024

    write_video(tmp_path / "v.mp4", 80, size=(1080, 1080), options={"preset": "ultrafast", "bf": "0"})
    dataset = EvalDataset(VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(80), TestTransform(48))
    peak.write_text("5")
    before = megabytes("VmRSS")
    assert numbers_of(dataset[0]["video"][0].numpy()) == list(range(80))
    assert megabytes("VmHWM") - before < 100


def test_frames_too_large(tmp_path, monkeypatch):
    """Refused by the header, before memory is taken for them."""
    path = write_video(tmp_path / "v.mp4", 2)
    monkeypatch.setattr(bounds, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="has frames of 64 x 48 pixels, too large to decode"):
        VideoReader(path)


def test_file_that_vanishes_while_reading(tmp_path, monkeypatch):
    """Read again by seeking (a large file), it is gone: a reason, no crash."""
    path = write_video(tmp_path / "v.mp4", 20, size=SQUARE)
    with VideoReader(path, packet_cap_bytes=0) as reader:
        path.unlink()
        with pytest.raises(VideoError, match=r"v\.mp4: cannot be read \(No such file"):
            reader.read([3])


def test_every_frame_of_a_training_clip_has_the_same_crop(tmp_path):
    """A still picture stays still under random crops and flips."""
    write_video(tmp_path / "v.mp4", [0b1011_0110_0101] * 8, size=(96, 64))
    dataset = TrainDataset(VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(8), TrainTransform(32))
    for epoch in range(3):
        clip = dataset[epoch, 0]["video"][0].float()
        assert torch.all((clip - clip[:1]).abs().mean(dim=(1, 2, 3)) < 4)
