"""The reader against a full decode by plain PyAV, on every codec and container, and on broken files."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest
import torch
from conftest import VIDEO_CASES
from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler
from pytorchvideo.data.encoded_video import EncodedVideo
from video_files import full_decode, number_of, numbers_of, write_audio_only, write_video

from dtf.data.datamodule import VideoDataModule
from dtf.data.decode import ReaderPathHandler, VideoError, VideoReader, check_pyav
from dtf.data.prepare import main as prepare


def as_frames(clip: torch.Tensor) -> np.ndarray:
    assert clip.dtype == torch.uint8
    return clip.permute(0, 2, 3, 1).numpy()


def random_indices(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(num_frames, size=int(rng.integers(1, 9)))


@pytest.mark.parametrize("cap", [64 << 20, 0], ids=["packets held", "by seeking"])
@pytest.mark.parametrize("name", VIDEO_CASES)
def test_frames_are_exact(name, cap, video_case, monkeypatch):
    """Any set of indices gives the very pixels of a full decode, without the last resort of decoding all."""
    path = video_case(name)
    expected = full_decode(path)
    monkeypatch.setattr(VideoReader, "_recover", lambda self, missing: pytest.fail(f"frames lost: {missing}"))
    rng = np.random.default_rng(0)
    with VideoReader(path, packet_cap_bytes=cap) as reader:
        assert (reader._packets is None) is (cap == 0)
        assert reader.num_frames == len(expected) == VIDEO_CASES[name]["numbers"]
        whole = as_frames(reader.read(range(reader.num_frames)))
        assert np.array_equal(whole, expected)
        assert numbers_of(whole) == list(range(len(expected)))
        for _ in range(15):
            indices = random_indices(reader.num_frames, rng)
            assert np.array_equal(as_frames(reader.read(indices)), expected[indices])
        assert reader.errors == reader.filled == 0


@pytest.mark.slow
def test_real_videos_are_exact(real_videos):
    rng = np.random.default_rng(0)
    for path in real_videos:
        expected = full_decode(path)
        with VideoReader(path) as reader:
            assert reader.num_frames == len(expected)
            for _ in range(3):
                indices = random_indices(reader.num_frames, rng)
                assert np.array_equal(as_frames(reader.read(indices)), expected[indices])


def test_decodes_only_what_is_needed(tmp_path, monkeypatch):
    """A frame right behind a key frame costs two packets, not the way from the start of the file."""
    path = write_video(tmp_path / "v.mp4", 60, gop=10, options={"bf": "0", "x264-params": "scenecut=0"})
    with VideoReader(path) as reader:
        ranges = reader._ranges(reader._position[np.array([21, 51])])
        assert ranges == [(20, 22), (50, 52)]
        fed = []
        monkeypatch.setattr(
            VideoReader, "_read_packets", lambda self, a, b: fed.extend(range(a, b)) or self._packets[a:b]
        )
        assert numbers_of(as_frames(reader.read([21, 51, 21]))) == [21, 51, 21]
        assert fed == [20, 21, 50, 51]


def test_unreferenced_frames_are_skipped(video_case):
    """With B-frames, unwanted ones are not decoded; what is wanted stays exact (see above)."""
    with VideoReader(video_case("h264_b_frames.mp4")) as reader:
        everything = sum(1 for _ in reader._decode_range(0, reader._num_packets))
        sparse = sum(1 for _ in reader._decode_range(0, reader._num_packets, wanted={0}))
        assert sparse < everything == reader.num_frames
        assert numbers_of(as_frames(reader.read(range(40)))) == list(range(40))  # the setting was taken back


def test_edit_list_trims_the_front(tmp_path):
    path = write_video(
        tmp_path / "v.mp4",
        40,
        pts=list(range(-10, 30)),
        container_options={"avoid_negative_ts": "disabled"},
    )
    with VideoReader(path) as reader:
        assert reader._num_packets > reader.num_frames  # there are packets that no player shows
        assert numbers_of(as_frames(reader.read(range(reader.num_frames)))) == list(range(10, 40))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(tmp_path, degrees):
    """Turning the frames back gives the upright video; a picture that no rotation leaves as it is."""
    path = write_video(tmp_path / "v.mp4", [37] * 3, rotation=degrees)
    upright = full_decode(write_video(tmp_path / "plain.mp4", [37] * 3))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == degrees % 360
    with VideoReader(path) as reader:
        rotated = as_frames(reader.read([0, 2]))
    quarter_turns = degrees // 90
    assert rotated.shape[1:3] == ((64, 48) if quarter_turns % 2 else (48, 64))
    back = np.rot90(rotated, -quarter_turns, axes=(1, 2))
    assert np.array_equal(back, upright[[0, 2]])
    assert number_of(back[0]) == 37
    assert number_of(np.rot90(rotated[0], quarter_turns)) != 37 or degrees == 180


def test_frames_before_the_first_key_frame_are_dropped(tmp_path):
    """A transport stream cut inside a GOP starts with frames that nothing can decode."""
    whole = write_video(tmp_path / "whole.ts", 40, options={"bf": "2", "x264-params": "scenecut=0"})
    with av.open(str(whole)) as container:
        starts = [p.pos for p in container.demux(video=0) if p.size]
    data = whole.read_bytes()
    # Program tables first, then from the fifth frame on.
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[: starts[0]] + data[starts[4] :])
    with VideoReader(cut) as reader:
        assert numbers_of(as_frames(reader.read(range(reader.num_frames)))) == list(range(12, 40))
        assert reader.filled == 0


def test_repeated_time_stamps_are_counted_not_trusted(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", 30, options={"bf": "0"})
    stuck = tmp_path / "stuck.mkv"
    with av.open(str(whole)) as source, av.open(str(stuck), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = packet.pts // 100 * 100
                packet.stream = stream
                target.mux(packet)
    with VideoReader(stuck) as reader:
        assert reader._sequential
        assert reader.num_frames == 30
        assert numbers_of(as_frames(reader.read([3, 17, 29]))) == [3, 17, 29]


def test_change_of_size_is_resized_to_the_first(tmp_path):
    """Two H.264 streams of different size, one after the other."""
    small = write_video(tmp_path / "small.h264", 6)
    large = write_video(tmp_path / "large.h264", range(6, 12), size=(128, 96))
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(both) as reader:
        clip = as_frames(reader.read(range(12)))
    assert clip.shape == (12, 48, 64, 3)
    assert numbers_of(clip) == list(range(12))


# ---- broken files ----


def broken_files(folder):
    """name -> (path, what the message must say)"""
    good = write_video(folder / "good.mp4", 30)
    data = good.read_bytes()
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("<html>not found</html>\n" * 50)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "no_index.mp4").write_bytes(data[: len(data) // 2])
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    write_audio_only(folder / "audio.mp4")
    return {
        "zero.mp4": "empty (0 bytes)",
        "text.mp4": "cannot be opened as a video",
        "noise.mp4": "cannot be opened as a video",
        "no_index.mp4": "cannot be opened as a video",
        "playlist.mp4": "cannot be opened as a video",
        "concat.mp4": "cannot be opened as a video",
        "folder.mp4": "is a folder",
        "dangling.mp4": "link to a missing file",
        "missing.mp4": "does not exist",
        "audio.mp4": "no video stream (only audio)",
    }


def test_broken_files_have_one_clear_reason(tmp_path):
    num_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(VideoError) as caught:
            VideoReader(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: "), message
        assert reason in message
        assert "\n" not in message
    if num_open is not None:
        assert len(os.listdir("/proc/self/fd")) == num_open, "a refused file stays open"


def test_truncated_data_gives_what_is_there(tmp_path):
    """Index first, then data cut inside frame 36: what is there is right, nothing is made up."""
    path = write_video(
        tmp_path / "v.mp4", 60, options={"bf": "0"}, container_options={"movflags": "faststart"}
    )
    expected = full_decode(path)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    os.truncate(path, starts[36] + 2)
    with VideoReader(path) as reader:
        assert reader.num_frames in (36, 37)  # the packet that is itself cut may count
        assert np.array_equal(as_frames(reader.read(range(36))), expected[:36])


def test_damaged_frames_are_counted_and_filled(tmp_path):
    """A wanted frame whose packet is unusable is replaced by its nearest neighbour and counted."""
    path = write_video(tmp_path / "v.mov", 30, codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in places[10:12]:
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        assert reader.num_frames == 30
        assert numbers_of(as_frames(reader.read([8, 9, 10, 11, 12]))) == [8, 9, 9, 12, 12]
        assert reader.filled == 2
        assert reader.errors > 0
        with pytest.raises(VideoError, match="2 of 2 wanted frames could not be decoded"):
            reader.read([10, 11])


def test_nothing_decodes(tmp_path):
    path = write_video(tmp_path / "v.mov", 5, codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in places:
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    with VideoReader(path) as reader, pytest.raises(VideoError, match="no frame could be decoded"):
        reader.read([0, 4])


def test_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    os.rename(write_video(tmp_path / "v.mp4", 3), path)
    with VideoReader(path) as reader:
        assert numbers_of(as_frames(reader.read([2]))) == [2]
    error = VideoError(path, "reason")
    assert str(error).encode().endswith(b"caf\\udce9.mp4: reason")


def test_wrong_indices_and_closed_reader(video_case):
    reader = VideoReader(video_case("three_frames.mp4"))
    for indices in ([3], [-1], []):
        with pytest.raises(ValueError, match=r"frame indices must lie in 0\.\.2"):
            reader.read(indices)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="was closed"):
        reader.read([0])


def test_no_file_stays_open(video_case):
    """Also when reading stops early."""
    path = video_case("h264_b_frames.mp4")
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with VideoReader(path) as reader:
            next(reader.iter_frames([0, 20, 39]))
    assert len(os.listdir("/proc/self/fd")) == before


# ---- PyTorchVideo ----


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "mpeg4_b_frames.mp4"])
def test_get_clip_agrees_with_pytorchvideo(name, video_case):
    """On constant-rate MP4, where its own reader is right."""
    path = video_case(name)
    theirs = EncodedVideo.from_path(str(path), decode_audio=False)
    with VideoReader(path) as ours:
        assert ours.duration == pytest.approx(float(theirs.duration), abs=1e-3)
        for start, end in [(0.0, 0.5), (0.3, 0.9), (1.0, 4 / 3)]:
            expected = theirs.get_clip(start, end)["video"]
            clip = ours.get_clip(start, end)
            assert clip["audio"] is None
            assert clip["video"].dtype == expected.dtype
            assert torch.equal(clip["video"], expected)
        assert ours.get_clip(5.0, 6.0) is None


def test_get_clip_always_has_a_frame(video_case):
    """Variable rate: in a gap, the frame on display."""
    with VideoReader(video_case("variable_rate.mp4")) as reader:
        for start in np.linspace(0, reader.duration * 0.999, 40):
            clip = reader.get_clip(start, start + 1e-3)["video"]
            shown = int(np.searchsorted(reader.frame_seconds, start + 1e-6, side="right")) - 1
            numbers = numbers_of(clip.permute(1, 2, 3, 0).numpy())
            assert numbers in ([shown], [shown + 1])


def test_pytorchvideo_data_set_uses_our_reader(video_case):
    """AVI with B-frames comes out in order, which PyTorchVideo's own reader gets wrong."""
    paths = [
        (str(video_case(name)), {"label": i}) for i, name in enumerate(["mpeg4_b_frames.avi", "vp9.webm"])
    ]
    dataset = LabeledVideoDataset(
        paths,
        make_clip_sampler("uniform", 0.5),
        video_sampler=torch.utils.data.SequentialSampler,
        decode_audio=False,
    )
    dataset.video_path_handler = ReaderPathHandler()
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for item in dataset:
        numbers[item["label"]] += numbers_of(item["video"].permute(1, 2, 3, 0).numpy())
        assert item["video_name"] in ("mpeg4_b_frames.avi", "vp9.webm")
    assert numbers[0][:30] == list(range(30))
    assert numbers[1] == list(range(60))


@pytest.fixture
def changed_pyav(monkeypatch):
    """A PyAV whose packets have lost an attribute, in a process that has not looked at it yet."""
    demux = av.container.InputContainer.demux

    class Container:
        def __init__(self, *args, **kwargs):
            self._real = real_open(*args, **kwargs)

        def __getattr__(self, name):
            return getattr(self._real, name)

        def demux(self, stream):
            for packet in demux(self._real, stream):
                packet.is_discarded  # noqa: B018
                yield packet

    real_open = av.open
    monkeypatch.setattr(av, "open", Container)
    check_pyav.cache_clear()
    yield
    check_pyav.cache_clear()


def test_a_changed_pyav_is_named_and_no_video_is_blamed(changed_pyav, tmp_path, capsys):
    with pytest.raises(ValueError, match=rf"PyAV {av.__version__} does not work .*is_discarded.*av>=18,<"):
        VideoDataModule(root=str(tmp_path))
    assert prepare(["k400", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: PyAV {av.__version__} does not work")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_pyav_reads_the_video_that_tells_a_changed_one():
    check_pyav.cache_clear()
    check_pyav()
