"""Videos stored as JPEG frames: folders and LMDBs read like video files, faults get one reason."""

from __future__ import annotations

import builtins
import io

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import numbers_of, painted, write_video

from dtf.data import bounds
from dtf.data.dataset import EvalDataset, TrainDataset
from dtf.data.decode import VideoError, VideoReader
from dtf.data.lists import VideoIndex, read_list
from dtf.data.sampling import FrameSampler
from dtf.data.storage import FrameFolderReader, LmdbReader, open_video
from dtf.data.transforms import TestTransform, TrainTransform

lmdb = pytest.importorskip("lmdb", reason="LMDB storage is an optional extra: pip install -e '.[lmdb]'")


def jpeg(number, size=(64, 48), mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(painted(number, size[1], size[0])).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_folder(path, images, pattern="{:05d}.jpg"):
    path.mkdir(parents=True)
    for number, data in images.items():
        (path / pattern.format(number)).write_bytes(data)
    return path


def write_lmdb(path, images, pattern="{:06d}.jpg"):
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, data in images.items():
            transaction.put(pattern.format(number).encode(), data)
    return path


WRITERS = {"folder": write_folder, "lmdb": write_lmdb}


@pytest.fixture(params=sorted(WRITERS))
def write_frames(request):
    return WRITERS[request.param]


def numbers(frames):
    return numbers_of(frames.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("pattern", "first"),
    [("{:05d}.jpg", 1), ("{:06d}.jpg", 1), ("img_{:05d}.jpg", 1), ("frame{:d}.JPEG", 0), ("{:04d}.jpg", 0)],
)
def test_frames_by_index_whatever_they_are_called(tmp_path, write_frames, pattern, first):
    images = {first + i: jpeg(i) for i in range(12)}  # "frame10" must not come before "frame2"
    with open_video(write_frames(tmp_path / "video", images, pattern)) as reader:
        assert reader.num_frames == 12
        assert reader.fps == 0.0
        frames = reader.read([11, 0, 5, 5, 2])
        assert frames.shape == (5, 3, 48, 64)
        assert frames.dtype == torch.uint8
        assert numbers(frames) == [11, 0, 5, 5, 2]
        assert [i for i, _ in reader.iter_frames([7, 3, 7])] == [3, 7]
        assert (reader.errors, reader.filled) == (0, 0)
        for bad in ([12], [-1], []):
            with pytest.raises(ValueError, match=r"must lie in 0\.\.11"):
                reader.read(bad)


def test_the_pixels_are_those_of_pillow(tmp_path, write_frames):
    data = jpeg(1234)
    with open_video(write_frames(tmp_path / "video", {1: data})) as reader:
        ours = reader.read([0])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_storages_are_told_apart(tmp_path):
    images = {1: jpeg(0)}
    assert isinstance(open_video(write_video(tmp_path / "a.mp4", 3)), VideoReader)
    assert isinstance(open_video(write_folder(tmp_path / "b", images)), FrameFolderReader)
    assert isinstance(open_video(write_lmdb(tmp_path / "c", images)), LmdbReader)


def test_broken_and_missing_frames_are_filled_with_the_nearest(tmp_path, write_frames):
    images = {1 + i: jpeg(i) for i in range(10)}
    del images[4]  # index 3
    images[7] = b"no image"
    images[9] = b""
    with open_video(write_frames(tmp_path / "video", images)) as reader:
        assert reader.num_frames == 10
        assert numbers(reader.read(range(10))) == [0, 1, 2, 2, 4, 5, 5, 7, 7, 9]
        assert (reader.filled, reader.errors) == (3, 2)
        with pytest.raises(VideoError, match="2 of 3 wanted frames could not be decoded"):
            reader.read([3, 6, 9])


def test_frames_of_other_sizes_and_colours_become_like_the_first(tmp_path, write_frames):
    images = {1: jpeg(3), 2: jpeg(5, size=(128, 96)), 3: jpeg(6, mode="L"), 4: jpeg(7, mode="CMYK")}
    with open_video(write_frames(tmp_path / "video", images)) as reader:
        frames = reader.read([0, 1, 2, 3])
        assert numbers(frames) == [3, 5, 6, 7]


def test_frames_beside_optical_flow_are_found(tmp_path):
    folder = write_folder(tmp_path / "video", {1: jpeg(1), 2: jpeg(2)}, "img_{:05d}.jpg")
    for direction in "xy":
        (folder / f"flow_{direction}_00001.jpg").write_bytes(jpeg(0))
    (folder / "notes.txt").write_text("no frame")
    with open_video(folder) as reader:
        assert numbers(reader.read([0, 1])) == [1, 2]


def test_folders_that_hold_no_video(tmp_path):
    (tmp_path / "empty").mkdir()
    two = write_folder(tmp_path / "two", {1: jpeg(1)}, "left_{}.jpg")
    (two / "right_1.jpg").write_bytes(jpeg(1))
    sparse = write_folder(tmp_path / "sparse", {1: jpeg(1), 10_000: jpeg(1)})
    for folder, reason in {
        tmp_path / "empty": "holds no numbered JPEG images",
        two: r"holds several series of images \(left_, right_\)",
        sparse: "holds 2 images numbered over a range of 10000",
    }.items():
        with pytest.raises(VideoError, match=reason):
            open_video(folder)
    with pytest.raises(VideoError, match="does not exist"):
        open_video(tmp_path / "missing")


def test_damaged_lmdbs_get_one_reason_and_no_signal(tmp_path):
    whole = (write_lmdb(tmp_path / "whole", {i: jpeg(i) for i in range(30)}) / "data.mdb").read_bytes()
    for name, data, reason in [
        ("empty", b"", "is no LMDB"),
        ("short", whole[:5000], "is no LMDB"),
        ("cut", whole[: len(whole) // 2], "is cut short"),
        ("noise", bytes(range(256)) * 100, "cannot be read as an LMDB"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_bytes(data)
        with pytest.raises(VideoError, match=reason):
            open_video(tmp_path / name)
    write_lmdb(tmp_path / "other", {1: b"x"}, "key{}")
    with pytest.raises(VideoError, match="holds no numbered JPEG images"):
        open_video(tmp_path / "other")


def test_lmdb_opens_read_only_and_leaves_no_lock(tmp_path):
    path = write_lmdb(tmp_path / "video", {1: jpeg(9)})
    (path / "lock.mdb").unlink()
    for _ in range(3):
        with open_video(path) as reader:
            assert numbers(reader.read([0])) == [9]
    assert [file.name for file in path.iterdir()] == ["data.mdb"]


def test_lmdb_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "video", {1: jpeg(0)})
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "lmdb":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[lmdb\]'"):
        open_video(path)


def test_data_sets_read_every_storage_alike(tmp_path, write_frames):
    write_frames(tmp_path / "video", {1 + i: jpeg(i) for i in range(20)})
    index = VideoIndex(tmp_path, ["video"], [3])
    sample = EvalDataset(index, FrameSampler(4, 2), TestTransform(48), num_clips=2)[0]
    assert sample["error"] == []
    assert sample["video"].shape == (2, 4, 48, 48, 3)
    train = TrainDataset(index, FrameSampler(4, 2), TrainTransform(32))[0, 0]
    assert (train["label"], train["error"]) == (3, [])
    slow = EvalDataset(index, FrameSampler(4, 2, target_fps=30), TestTransform(48))[0]
    assert "has no frame rate" in slow["error"][0].reason


def test_counts_of_the_list_limit_stored_frames_but_not_video_files(tmp_path):
    write_folder(tmp_path / "frames", {1 + i: jpeg(i) for i in range(20)})
    write_folder(tmp_path / "fewer", {1 + i: jpeg(i) for i in range(9)})
    write_video(tmp_path / "file.mp4", 20)
    (tmp_path / "list.txt").write_text("frames 10 0\nfewer 10 1\nfile.mp4 30 2\n")
    faults: list[str] = []
    index = read_list(tmp_path, "list.txt", None, faults)
    assert faults == []
    dataset = EvalDataset(index, FrameSampler(4, scheme="uniform"), TestTransform(48))
    assert [index.usable_frames(i, n) for i, n in ((0, 20), (2, 20))] == [10, 20]
    assert [dataset[i]["error"] for i in (0, 2)] == [[], []]
    assert str(dataset[1]["error"][0]).endswith("fewer: is listed with 10 frames but holds 9")


def test_frames_that_ask_for_much(tmp_path, monkeypatch, write_frames):
    """Too many bytes or too many images: refused before they are read."""
    path = write_frames(tmp_path / "v", {number: jpeg(number) for number in range(1, 5)})
    monkeypatch.setattr(bounds, "MAX_IMAGE_BYTES", 100)
    with (
        open_video(path) as reader,
        pytest.raises(VideoError, match=r"image .*1\.jpg has [0-9]+ bytes, more"),
    ):
        reader.read([0])
    monkeypatch.setattr(bounds, "MAX_PACKETS", 3)
    with pytest.raises(VideoError, match="holds more than 3 images"):
        open_video(path)
