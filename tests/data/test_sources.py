"""What every source of frames must do, whatever it is; and what is particular to pictures and arrays."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import jpeg as lying_jpeg
from PIL import Image
from video_files import numbers_of, painted, write_video

from dtf.data import bounds
from dtf.data.dataset import EvalDataset
from dtf.data.decoders import DECODERS, reader_class
from dtf.data.isolated import IsolatedReader
from dtf.data.lists import VideoIndex
from dtf.data.pictures import PictureReader
from dtf.data.reader import FrameReader, VideoError
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import TestTransform

COUNT = 7
FRAMES = np.stack([painted(3 * number + 1) for number in range(COUNT)])


def encoded(picture: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, kind, **options)
    return file.getvalue()


def film(folder: Path) -> Path:
    return write_video(folder / "film.mp4", numbers_of(FRAMES))


def stills(folder: Path) -> Path:
    (folder / "stills").mkdir()
    for number, frame in enumerate(FRAMES):
        (folder / "stills" / f"{number:05d}.jpg").write_bytes(encoded(frame, "JPEG"))
    return folder / "stills"


def database(folder: Path) -> Path:
    lmdb = pytest.importorskip("lmdb", reason="LMDB is an optional extra: pip install -e '.[lmdb]'")
    (folder / "database").mkdir()
    path = str(folder / "database")
    with lmdb.open(path, map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, frame in enumerate(FRAMES):
            transaction.put(f"{number:06d}.jpg".encode(), encoded(frame, "JPEG"))
    return folder / "database"


def picture(folder: Path) -> Path:
    (folder / "picture.png").write_bytes(encoded(FRAMES[0], "PNG"))
    return folder / "picture.png"


def decoded_by(decoder: str, folder: Path) -> FrameReader:
    try:
        reader_class(decoder)
    except ValueError as error:
        pytest.skip(str(error))
    return open_video(film(folder), decoder)


SOURCES = {
    **{name: lambda folder, name=name: decoded_by(name, folder) for name in DECODERS},
    "read apart": lambda folder: IsolatedReader(film(folder), 60),
    "frame folder": lambda folder: open_video(stills(folder)),
    "frame folder read apart": lambda folder: IsolatedReader(stills(folder), 60),
    "LMDB": lambda folder: open_video(database(folder)),
    "picture": lambda folder: open_video(picture(folder)),
    "array": lambda folder: open_video(FRAMES, fps=30.0),
    "array without a rate": lambda folder: open_video(FRAMES),
    "tensor": lambda folder: open_video(torch.from_numpy(FRAMES), fps=30.0),
}


@pytest.fixture(params=SOURCES)
def reader(request, tmp_path):
    with SOURCES[request.param](tmp_path) as opened:
        yield opened


# ---- the contract ----


def test_says_what_it_is(reader):
    assert isinstance(reader, FrameReader)
    assert reader.num_frames in (1, COUNT)
    assert reader.name == os.path.basename(reader.path)
    assert reader.fps == 0 or reader.fps == pytest.approx(30, rel=1e-3)
    if reader.fps:
        assert reader.frame_seconds == pytest.approx(np.arange(COUNT) / 30, abs=1e-3)
    else:
        assert reader.frame_seconds is None


def test_frames_by_index(reader):
    last = reader.num_frames - 1
    for indices in ([0], [last, 0, last // 2, last, last], range(last + 1), np.arange(last + 1)[::-1]):
        clip = reader.read(indices)
        assert clip.shape == (len(indices), 3, 48, 64)
        assert clip.dtype == torch.uint8
        assert numbers_of(clip.permute(0, 2, 3, 1).numpy()) == [3 * index + 1 for index in indices]


@pytest.mark.parametrize("way", ["iter_frames", "iter_forward"])
def test_each_frame_once_by_rising_index(reader, way):
    last = reader.num_frames - 1
    found = list(getattr(reader, way)([last, 0, last, last // 2]))
    assert [index for index, _ in found] == sorted({0, last // 2, last})
    for index, frame in found:
        assert (frame.dtype, frame.shape) == (np.uint8, (48, 64, 3))
        assert numbers_of(frame[None]) == [3 * index + 1]
        torch.from_numpy(frame)  # does not warn
    assert (reader.errors, reader.filled) == (0, 0)


@pytest.mark.parametrize("way", ["read", "iter_frames", "iter_forward"])
def test_wrong_indices_and_closed_sources(reader, way):
    last = reader.num_frames - 1
    for indices in ([last + 1], [0, -1], []):
        with pytest.raises(ValueError, match=rf"frame indices must lie in 0\.\.{last}, got .*"):
            list(getattr(reader, way)(indices))
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match=f"{reader.name} was closed; open it again"):
        list(getattr(reader, way)([0]))


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    return path


def emptied(folder: Path) -> Path:
    for file in folder.iterdir():
        file.write_bytes(b"")
    return folder


BROKEN = {
    **{f"film cut short, {name}": (lambda f: cut(film(f)), name) for name in DECODERS},
    "picture cut short": (lambda f: cut(picture(f)), "pyav"),
    "empty frames": (lambda f: emptied(stills(f)), "pyav"),
    "empty LMDB": (lambda f: emptied(database(f)), "pyav"),
    "nothing there": (lambda f: f / "none.jpg", "pyav"),
    "wrong array": (lambda f: FRAMES.astype(np.float32), "pyav"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_one_line(name, tmp_path):
    make, decoder = BROKEN[name]
    source = make(tmp_path)
    try:
        reader_class(decoder)
    except ValueError as error:
        pytest.skip(str(error))
    with pytest.raises(VideoError) as caught, open_video(source, decoder) as reader:
        reader.read([0])
    where = source if isinstance(source, Path) else "frames in memory"
    assert str(caught.value).startswith(f"{where}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.reason


# ---- arrays ----


def test_frames_of_an_array_are_not_copied():
    with open_video(FRAMES) as reader:
        assert all(np.shares_memory(frame, FRAMES) for _, frame in reader.iter_frames(range(COUNT)))


@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_does_not_take_as_they_are(tmp_path):
    """Colours turned round, and files mapped into memory that may not be written."""
    np.save(tmp_path / "frames.npy", FRAMES)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    for frames in (mapped, FRAMES[:, :, ::-1, ::-1], FRAMES[::-1], FRAMES[:, ::2]):
        with open_video(frames) as reader:
            for index, frame in reader.iter_frames(range(COUNT)):
                assert np.array_equal(torch.from_numpy(frame).numpy(), frames[index])


@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (FRAMES[0], r"uint8 of shape \(48, 64, 3\)"),
        (FRAMES.transpose(0, 3, 1, 2), r"uint8 of shape \(7, 3, 48, 64\)"),
        (FRAMES[:0], r"uint8 of shape \(0, 48, 64, 3\)"),
        (torch.from_numpy(FRAMES).float(), r"float32 of shape \(7, 48, 64, 3\)"),
        (list(FRAMES), "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_array_of_frames(frames, got):
    with pytest.raises(
        VideoError, match=rf"frames in memory: must be uint8 of shape .*, got {got}; a single"
    ):
        open_video(frames)


def test_arrays_that_ask_for_much_or_have_no_rate():
    with pytest.raises(VideoError, match="frames of 70000 x 1 pixels, too long and thin"):
        open_video(np.zeros((1, 1, 70000, 3), np.uint8))
    with pytest.raises(VideoError, match=r"must be on the CPU, got meta: give frames\.cpu\(\)"):
        open_video(torch.empty(1, 2, 2, 3, dtype=torch.uint8, device="meta"))
    for fps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps must be frames per second, or 0 where it is not known"):
            open_video(FRAMES, fps=fps)


# ---- pictures ----

LEFT = painted(0b0101_0011_1001)


def read_picture(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    with open_video(path) as reader:
        assert isinstance(reader, PictureReader)
        assert (reader.num_frames, reader.fps) == (1, 0.0)
        return reader.read([0])[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("name", ["a.jpg", "no ending"])
def test_kinds_of_picture_whatever_they_are_called(tmp_path, kind, name):
    assert numbers_of(read_picture(tmp_path / name, encoded(LEFT, kind))[None]) == [0b0101_0011_1001]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG")]
)
def test_modes_of_pictures(tmp_path, mode, kind):
    found = read_picture(tmp_path / "a", encoded(Image.fromarray(LEFT).convert(mode), kind, quality=95))
    assert np.abs(found.astype(int) - LEFT).max() < 12


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_keep_their_colours(tmp_path):
    image = Image.fromarray(LEFT).convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(read_picture(tmp_path / "a", data), image.convert("RGB"))


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_become_the_upper_8(tmp_path, colour_type, channels):
    """Grey, colours, both with transparency, which is left out. Pillow alone makes grey above 255 white."""
    values = np.random.default_rng(0).integers(0, 1 << 16, (20, 30, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 30, 20, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    found = read_picture(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n" + data)
    upper = (values >> 8).astype(np.uint8)
    assert np.array_equal(found, upper[:, :, :3] if channels > 2 else upper[:, :, [0, 0, 0]])


@pytest.mark.parametrize(
    ("orientation", "stored"),
    {
        1: LEFT,
        2: LEFT[:, ::-1],
        3: LEFT[::-1, ::-1],
        4: LEFT[::-1],
        5: LEFT.transpose(1, 0, 2),
        6: np.rot90(LEFT),
        7: np.rot90(LEFT, 2).transpose(1, 0, 2),
        8: np.rot90(LEFT, -1),
        9: LEFT,
    }.items(),
)
def test_pictures_stand_upright(tmp_path, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG"):
        found = read_picture(tmp_path / "a", encoded(np.ascontiguousarray(stored), kind, exif=exif))
        assert np.abs(found.astype(int) - LEFT).mean() < 6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\x08\0", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12"]
)
def test_damaged_exif_costs_nothing(tmp_path, exif):
    for kind in ("PNG", "JPEG"):
        found = read_picture(tmp_path / "a", encoded(LEFT, kind, exif=exif))
        assert numbers_of(found[None]) == [0b0101_0011_1001]


def lying_png(width: int, height: int) -> bytes:
    """A small PNG whose header says otherwise, and whose checksum fits."""
    data = bytearray(encoded(LEFT, "PNG"))
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


def animation(kind: str) -> bytes:
    return encoded(FRAMES[0], kind, save_all=True, append_images=[Image.fromarray(FRAMES[1])])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(LEFT, "JPEG")[:-400], r"cannot be decoded as a picture \(.+\)"),
        (encoded(LEFT, "PNG")[:-40], r"cannot be decoded as a picture \(.+\)"),
        (encoded(LEFT, "JPEG")[:20], r"is no whole picture of a kind that is read \(JPEG, PNG, WEBP, BMP\)"),
        (encoded(LEFT, "TIFF"), r"is no whole picture of a kind that is read \(JPEG, PNG, WEBP, BMP\)"),
        (lying_jpeg(9000, 9000), "has frames of 9000 x 9000 pixels, too large to decode"),
        (lying_png(11000, 11000), "has frames of 11000 x 11000 pixels, too large to decode"),
        (lying_png(60000, 60000), r"is too large to decode \(at most 67108864 pixels\)"),
        (lying_png(60000, 10), "has frames of 60000 x 10 pixels, too long and thin"),
        (animation("WEBP"), "is an animation, not one picture: save it as a GIF or a video"),
        (b"", r"is no picture of a kind that is read \(JPEG, .*\), and is empty \(0 bytes\)"),
        (b"just text", r"is no picture of a kind that is read \(JPEG, .*\), and cannot be opened as a video"),
    ],
)
def test_pictures_that_cannot_be_read(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=rf"^{path}: {reason}") as caught:
        open_video(path)
    assert "\n" not in str(caught.value)


def test_pictures_come_in_by_the_same_door(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    for reader in (open_video, PictureReader):
        with pytest.raises(VideoError, match="is not a regular file"):
            reader(tmp_path / "pipe.jpg")
    monkeypatch.setattr(bounds, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(VideoError, match=r"picture\.png: has [0-9]+ bytes, more than 50"):
        open_video(picture(tmp_path))


def test_moving_pictures_stay_videos(tmp_path):
    for name, data in {
        "a.gif": animation("GIF"),
        "a.png": animation("PNG"),
        "a.mjpeg": b"".join(encoded(frame, "JPEG") for frame in FRAMES[:2]),
    }.items():
        (tmp_path / name).write_bytes(data)
        with open_video(tmp_path / name) as reader:
            assert numbers_of(reader.read([0, 1]).permute(0, 2, 3, 1).numpy()) == numbers_of(FRAMES[:2])


@pytest.mark.parametrize("sampler", [FrameSampler(4, 2, target_fps=30), FrameSampler(4, scheme="segment")])
def test_a_still_is_a_clip_that_stands_still(tmp_path, sampler):
    """It has no rate, and needs none."""
    picture(tmp_path)
    index = VideoIndex(tmp_path, ["picture.png"], [0])
    sample = EvalDataset(index, sampler, TestTransform(48), num_clips=2)[0]
    assert sample["error"] == []
    assert sample["video"].shape == (2, 4, 48, 48, 3)
    assert (sample["video"] == torch.from_numpy(FRAMES[0])[:, 8:56]).all()


def test_the_documented_lines(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"^```python\n(from dtf\.data\.storage .*?)^```", text, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "dive.mp4", 20)
    names: dict = {}
    exec(lines, names)
    assert capsys.readouterr().out.startswith("20 30.0 [0.")
    assert numbers_of(names["clip"].permute(0, 2, 3, 1).numpy()) == [0, 8, 16, 8]
    assert names["index"] == 16
