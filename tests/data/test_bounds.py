"""What a file may ask for: every kind that asks for more gets one reason, in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hostile_files import HOSTILE, make_hostile
from video_files import numbers_of, painted, write_video

from dtf.data import bounds, isolated
from dtf.data.boxes import index_fault
from dtf.data.datamodule import VideoDataModule
from dtf.data.dataset import EvalDataset
from dtf.data.decode import VideoError, VideoReader
from dtf.data.lists import VideoIndex, read_list
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import TestTransform
from dtf.files import NotRegularError, check_regular

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth_megabytes(call: Callable[[], object]) -> float:
    """What a call takes of memory at its peak."""
    if not PEAK.exists():
        pytest.skip("the peak of memory can only be reset on Linux")

    def megabytes(field: str) -> float:
        return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) / 1024

    PEAK.write_text("5")
    before = megabytes("VmRSS")
    call()
    return megabytes("VmHWM") - before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_videos_give_one_reason_and_take_no_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "FORKS", False)  # what is taken is to be seen here
    path = make_hostile(name, tmp_path)
    dataset = EvalDataset(VideoIndex(tmp_path, [name], [0]), FrameSampler(8), TestTransform(48))
    samples = []
    assert growth_megabytes(lambda: samples.append(dataset[0])) < 100
    [(where, reason)] = samples[0]["error"]
    assert where == str(path)
    assert HOSTILE[name][1] in reason
    assert "\n" not in reason


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_hostile_videos_among_good_ones(num_workers, tmp_path):
    """Training and evaluation go through all of them; each is named, and clips are those of good ones."""
    film = write_video(tmp_path / "0.mp4", 4, size=(48, 48))
    for i in range(1, 30):
        os.link(film, tmp_path / f"{i}.mp4")
    good = [f"{i}.mp4" for i in range(30)]
    for name in HOSTILE:
        make_hostile(name, tmp_path)
    lines = [f"{name} {label}\n" for label, name in enumerate([*good, *HOSTILE])]
    (tmp_path / "list.txt").write_text("".join(lines))
    data = VideoDataModule(
        tmp_path,
        splits={"train": "list.txt", "val": "list.txt", "test": "list.txt"},
        clip_length=8,  # on the way of every video lies what is wrong with it
        frame_stride=1,
        crop_px=48,
        batch_size=4,
        num_workers=num_workers,
    )
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        errors, clips = {}, 0
        for batch in loader:
            errors |= {os.path.basename(path): why for error in batch["error"] for path, why in error}
            clips += len(batch["label"])
        assert clips >= len(lines) // 4 * 4
        if loader.drop_last:  # the last batch of training may be left out
            assert errors.keys() <= HOSTILE.keys()
            assert len(errors) >= len(HOSTILE) - 3
        else:
            assert errors.keys() == HOSTILE.keys()
        assert all(HOSTILE[name][1] in reason for name, reason in errors.items())


def test_frame_sizes():
    for size in [(1, 1), (1920, 1080), (7680, 4320), (8192, 4320), (2400, 16), (256, 1)]:
        assert bounds.frame_fault(*size) is None
    for size in [(16000, 16000), (1_000_000, 1), (1, 257)]:
        assert f"{size[0]} x {size[1]} pixels" in bounds.frame_fault(*size)


def test_many_small_frames(tmp_path, monkeypatch):
    """What is kept for a frame does not depend on how small it is; right frames all the same."""
    count = 50_000
    pixels = np.zeros((count, 6), np.uint8)
    pixels[:, :4] = (np.arange(count) % 199 + 20)[:, None]
    pixels[:, 4:] = 128
    packets = np.concatenate([np.tile(np.frombuffer(b"FRAME\n", np.uint8), (count, 1)), pixels], 1)
    path = tmp_path / "small.y4m"
    path.write_bytes(b"YUV4MPEG2 W2 H2 F30:1 C420\n" + packets.tobytes())
    readers: list[VideoReader] = []
    assert growth_megabytes(lambda: readers.append(VideoReader(path, packet_cap_bytes=8 << 20))) < 25
    with readers[0] as reader:
        assert reader.num_frames == count
        bright, dark, dark_again, bright_again = reader.read([5, 0, 199 * 200, 199 * 200 + 5]).float()
        assert bool((bright > dark).all())
        assert bool((dark == dark_again).all())
        assert bool((bright == bright_again).all())
    monkeypatch.setattr(bounds, "MAX_PACKETS", count - 1)
    with pytest.raises(VideoError, match=f"has more than {count - 1} frames"):
        open_video(path)


def test_clip_that_would_not_fit(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 12)
    monkeypatch.setattr(bounds, "MAX_CLIP_BYTES", 10 * 64 * 48 * 3)
    with open_video(path) as reader:
        assert len(reader.read(range(10))) == 10
        with pytest.raises(
            VideoError, match=r"11 frames of 64 x 48 pixels take 101376 bytes \(at most 92160\)"
        ):
            reader.read(range(11))


@pytest.mark.parametrize(
    ("codec", "pixel_format", "ending"),
    [
        ("ffv1", "yuv420p", "mkv"),
        ("ffvhuff", "yuv420p", "avi"),
        ("huffyuv", "rgb24", "avi"),
        ("rawvideo", "yuv420p", "avi"),
        ("flv", "yuv420p", "flv"),
        ("mpeg1video", "yuv420p", "mpg"),
        ("msmpeg4", "yuv420p", "avi"),
        ("wmv1", "yuv420p", "asf"),
        ("wmv2", "yuv420p", "wmv"),
        ("prores", "yuv422p10le", "mov"),
        ("cfhd", "yuv422p10le", "mov"),
        ("qtrle", "rgb24", "mov"),
        ("png", "rgb24", "mov"),
        ("apng", "rgb24", "apng"),
        ("gif", "rgb8", "gif"),
        ("libtheora", "yuv420p", "ogv"),
    ],
)
def test_codecs_of_cameras_and_the_web_are_read(codec, pixel_format, ending, tmp_path):
    path = tmp_path / f"v.{ending}"
    container = {"wmv": "asf", "ogv": "ogg"}.get(ending)
    options = (
        {"b": "2M"} if pixel_format == "yuv420p" and codec not in ("ffv1", "ffvhuff", "rawvideo") else {}
    )
    try:
        write_video(
            path, 4, codec=codec, pixel_format=pixel_format, container_format=container, options=options
        )
    except av.codec.codec.UnknownCodecError as error:
        pytest.skip(f"this PyAV has no such encoder: {error}")
    with open_video(path) as reader:
        assert numbers_of(reader.read(range(4)).permute(0, 2, 3, 1).numpy()) == [0, 1, 2, 3]


def test_raw_sound_is_no_table_of_samples(tmp_path, monkeypatch):
    """Cameras store a sample for every sound level, of which FFmpeg makes no table."""
    path = tmp_path / "v.mov"
    with av.open(str(path), "w") as container:
        film, sound = container.add_stream("mjpeg", rate=30), container.add_stream("pcm_s16le", rate=48000)
        film.width, film.height, film.pix_fmt = 64, 48, "yuvj420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(film.encode(frame))
        levels = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), format="s16", layout="stereo")
        levels.sample_rate, levels.pts = 48000, 0
        container.mux(sound.encode(levels))
    monkeypatch.setattr(bounds, "MAX_PACKETS", 100)
    assert index_fault(path) is None
    monkeypatch.setattr(bounds, "MAX_PACKETS", 29)
    assert index_fault(path) == "claims 30 samples (at most 29)"


def test_indexes_wherever_they_lie(tmp_path):
    """Behind an unused box, with sizes of 64 bits, or inside unused space: where FFmpeg finds them too."""
    plain = make_hostile("claims_samples.mp4", tmp_path).read_bytes()
    start = plain.index(b"moov") - 4
    size = int.from_bytes(plain[start : start + 4], "big")
    moov = plain[start : start + size]
    wide = b"\0\0\0\1moov" + (size + 8).to_bytes(8, "big") + moov[8:]
    unused = (size + 8).to_bytes(4, "big") + b"free" + moov
    open_ended = b"\0\0\0\0" + moov[4:]
    path = tmp_path / "v.mp4"
    for index in (moov, wide, unused, b"\0\0\0\x0cabcd1234" + moov, open_ended):
        path.write_bytes(plain[:start] + index)
        assert "claims 60000000 samples" in (index_fault(path) or "")
    for whole in (b"", b"\0" * 100, b"\x1aE\xdf\xa3" * 10, plain[: start + 20]):
        path.write_bytes(whole)
        assert index_fault(path) is None


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert bounds.read_regular(tmp_path / "link") == b"12345"
    assert check_regular(tmp_path / "link") == 5
    with pytest.raises(bounds.TooLargeError, match="has 5 bytes, more than 4"):
        bounds.read_regular(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        for check in (bounds.read_regular, check_regular):
            with pytest.raises(NotRegularError, match="not a"):
                check(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        bounds.read_regular(tmp_path / "none")


def test_lists_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    faults: list[str] = []
    assert len(read_list(tmp_path, "list.txt", None, faults)) == 0
    assert faults == ["list.txt: cannot be read (is not a regular file)"]
