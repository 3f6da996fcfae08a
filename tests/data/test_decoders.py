"""The choice of a decoder: right frames on plain files, missing libraries, broken files, the data module."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from conftest import make_tree
from video_files import numbers_of, write_audio_only, write_video

from dtf.data.datamodule import VideoDataModule
from dtf.data.dataset import TrainDataset
from dtf.data.decode import VideoError, VideoReader
from dtf.data.decoders import DECODERS, DecordReader, TorchcodecReader, reader_class
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import TrainTransform

LIBRARIES = ("decord", "torchcodec")


@pytest.fixture
def use():
    """The decoder's name where it can be used; elsewhere the test is skipped with the reason."""

    def check(decoder: str) -> str:
        if decoder != "pyav":
            pytest.importorskip(decoder, reason=f"{decoder} is not installed", exc_type=ImportError)
            try:
                reader_class(decoder)
            except ValueError as error:
                pytest.skip(str(error))
        return decoder

    return check


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", ["h264_b_frames.mp4", "h264_pyramid.mp4", "variable_rate.mp4", "vp9.webm", "one_frame.mp4"]
)
def test_frames_are_the_numbered_ones(video_case, use, decoder, name):
    with open_video(video_case(name), use(decoder)) as reader, VideoReader(video_case(name)) as ours:
        count = reader.num_frames
        assert count == ours.num_frames
        if name != "variable_rate.mp4":  # whose mean the libraries take from the header
            assert reader.fps == pytest.approx(ours.fps, rel=1e-3)
        spread = np.linspace(0, count - 1, 7).round().astype(int)
        for indices in (range(count), spread, spread[::-1], [count // 2] * 3, [count - 1, 0]):
            clip = reader.read(indices)
            assert clip.shape == (len(indices), 3, 48, 64)
            assert clip.dtype == ours.read([0]).dtype
            assert numbers_of(clip.permute(0, 2, 3, 1).numpy()) == list(indices)
        # Other scalers, the same picture.
        assert (reader.read(spread).float() - ours.read(spread).float()).abs().mean() < 4
        assert [index for index, _ in reader.iter_frames([count - 1, 0, count - 1])] == sorted({0, count - 1})
        assert (reader.errors, reader.filled) == (0, 0)


@pytest.mark.parametrize("decoder", LIBRARIES)
def test_reading_outside_and_after_closing(video_case, use, decoder):
    reader = open_video(video_case("three_frames.mp4"), use(decoder))
    for indices in ([-1], [0, 3], []):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
            reader.read(indices)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match=r"three_frames\.mp4 was closed"):
        reader.read([0])


@pytest.mark.parametrize("decoder", LIBRARIES)
def test_broken_files_give_one_reason(tmp_path, use, decoder):
    """Whatever PyAV would refuse has its reason; what only shows in decoding has the library's."""
    use(decoder)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'whole.mp4'}\n")
    write_audio_only(tmp_path / "sound.mp4")
    whole = write_video(
        tmp_path / "whole.mp4", 200, size=(320, 240), container_options={"movflags": "faststart"}
    )
    for name, reason in {
        "missing.mp4": "does not exist",
        "empty.mp4": "is empty",
        "noise.mp4": "cannot be opened as a video",
        "list.mp4": "cannot be opened as a video",
        "sound.mp4": "has no video stream",
    }.items():
        with pytest.raises(VideoError) as error:
            open_video(tmp_path / name, decoder)
        assert str(error.value).startswith(f"{tmp_path / name}: {reason}")
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    with (
        pytest.raises(VideoError, match=rf"^.*cut\.mp4: .* by {decoder} \(.+\)$") as error,
        open_video(cut, decoder) as reader,
    ):
        reader.read(range(0, reader.num_frames, 5))
    assert "\n" not in str(error.value)
    assert "/src/" not in str(error.value), "no line of C++"


@pytest.mark.parametrize("decoder", LIBRARIES)
def test_names_that_are_not_utf8(tmp_path, use, decoder):
    path = write_video(tmp_path / "plain.mp4", 3)
    odd = path.rename(tmp_path / "\udcff.mp4")
    with pytest.raises(VideoError, match=rf"\\udcff\.mp4: cannot be opened by {decoder}") as error:
        open_video(odd, use(decoder))
    str(error.value).encode()


@pytest.mark.parametrize("bridge", ["native", "torch"])
def test_the_bridge_of_decord_stays_as_it_was(video_case, use, bridge):
    use("decord")
    import decord

    decord.bridge.set_bridge(bridge)
    try:
        with open_video(video_case("h264_b_frames.mp4"), "decord") as reader:
            frames = reader.iter_frames([3, 5])
            assert [next(frames)[0], decord.bridge._CURRENT_BRIDGE.type] == [3, bridge]
            assert numbers_of(reader.read([1, 7]).permute(0, 2, 3, 1).numpy()) == [1, 7]
            assert decord.bridge._CURRENT_BRIDGE.type == bridge
    finally:
        decord.bridge.set_bridge("native")


def test_frames_of_another_size_are_refused(video_case, use, monkeypatch):
    """Such files fail earlier in most releases; a wrong crop would show nowhere."""
    with open_video(video_case("three_frames.mp4"), use("torchcodec")) as reader:
        whole = reader._frame
        monkeypatch.setattr(reader, "_frame", lambda index: whole(index)[: 48 - 8 * (index == 2)])
        with pytest.raises(VideoError, match="changes its size at frame 2"):
            reader.read([0, 1, 2])


@pytest.mark.parametrize("width", [16, 48, 50, 52, 72, 340])
def test_rows_that_decord_pads(tmp_path, use, width):
    """It hands out narrow frames with the padding of their rows as further colours: refused, not shown."""
    path = write_video(tmp_path / "a.mp4", [5, 9], size=(width, 48))
    with open_video(path, use("decord")) as reader:
        if width in (50, 52, 340):
            assert numbers_of(reader.read([0, 1]).permute(0, 2, 3, 1).numpy()) == [5, 9]
            return
        with pytest.raises(
            VideoError, match=f"frame 0 cannot be decoded by decord .rows {width} pixels wide"
        ):
            reader.read([0, 1])


# ---- choosing ----


def test_names():
    assert reader_class("pyav") is VideoReader
    with pytest.raises(ValueError, match=r"unknown decoder 'torchcodek'; did you mean 'torchcodec'\?"):
        reader_class("torchcodek")
    with pytest.raises(ValueError, match=r"unknown decoder 'gpu' \(allowed: pyav, decord, torchcodec\)"):
        open_video("a.mp4", "gpu")


@pytest.mark.parametrize("decoder", LIBRARIES)
def test_a_missing_library_is_named_with_the_command(monkeypatch, tmp_path, decoder):
    for name in [name for name in sys.modules if name.split(".")[0] == decoder]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name, *args):
            if name == decoder:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ValueError, match=rf"{decoder} is not installed.*pip install -e '\.\[{decoder}\]'"):
        open_video(write_video(tmp_path / "a.mp4", 3), decoder)
    with pytest.raises(ValueError, match=rf"data: decoder '{decoder}'.*is not installed.*'pyav'"):
        VideoDataModule(tmp_path, decoder=decoder)
    assert open_video(tmp_path / "a.mp4").num_frames == 3


@pytest.mark.parametrize("raises", [False, True])
def test_torchcodec_without_ffmpeg(monkeypatch, raises):
    """Newer releases import and have no version of FFmpeg; older ones raise while they are imported."""
    fake = types.ModuleType("torchcodec")
    fake.ffmpeg_major_version = None
    fake.decoders = types.ModuleType("torchcodec.decoders")
    monkeypatch.setitem(sys.modules, "torchcodec", fake)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake.decoders)
    if raises:
        monkeypatch.delitem(sys.modules, "torchcodec.decoders")

        class Raising:
            def find_spec(self, name, *args):
                if name == "torchcodec.decoders":
                    raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg")

        fake.__path__ = []
        monkeypatch.setattr(sys, "meta_path", [Raising(), *sys.meta_path])
    with pytest.raises(ValueError, match=r"finds no FFmpeg.*pip install -e '\.\[torchcodec\]', with FFmpeg"):
        reader_class("torchcodec")


@pytest.mark.parametrize(("decoder", "cls"), [("decord", DecordReader), ("torchcodec", TorchcodecReader)])
def test_the_data_module_uses_the_chosen_one(tmp_path, use, monkeypatch, decoder, cls):
    root = make_tree(tmp_path / "tree", {"train": {"a": 2, "b": 1}, "val": {"a": 1}, "test": {"b": 2}})
    opened, original = tmp_path / "opened.txt", cls._open

    def noting(self, *args):  # in the process that reads
        with opened.open("a") as file:
            file.write(f"{self.path}\n")
        return original(self, *args)

    monkeypatch.setattr(cls, "_open", noting)
    data = VideoDataModule(
        root,
        decoder=use(decoder),
        clip_length=2,
        frame_stride=1,
        crop_px=32,
        batch_size=3,
        num_workers=0,
        augment={"crop": "center", "flip": 0.0},
    )
    (batch,) = data.train_dataloader()
    assert batch["error"] == [[]] * 3
    assert sorted(opened.read_text().splitlines()) == sorted(data.index("train").path(i) for i in range(3))
    shown = [numbers_of(clip.permute(1, 2, 3, 0).numpy())[0] for clip in batch["video"]]
    assert shown == batch["video_index"].tolist()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert not any(any(batch["error"]) for batch in loader)
    assert len(opened.read_text().splitlines()) == 6
    with pytest.raises(ValueError, match="data: unknown decoder 'pyaw'; did you mean 'pyav'"):
        VideoDataModule(root, decoder="pyaw")


@pytest.mark.parametrize("decoder", LIBRARIES)
def test_broken_videos_are_replaced_as_ever(tmp_path, use, decoder):
    write_video(tmp_path / "0.mp4", 4)
    (tmp_path / "bad.mp4").write_text("no video")
    index = VideoIndex(tmp_path, ["bad.mp4", "0.mp4"], [1, 0])
    plain = TrainTransform(32, crop="center", flip=0.0)
    sample = TrainDataset(index, FrameSampler(2), plain, seed=1, decoder=use(decoder))[0, 0]
    assert sample["video_index"] == 1
    assert "bad.mp4: cannot be opened as a video" in str(sample["error"][0])
