"""Videos that hang, crash or fill the memory of what reads them cost themselves and nothing else."""

from __future__ import annotations

import functools
import gc
import io
import os
import pickle
import shutil
import signal
import threading
import time
import weakref
from pathlib import Path

import av
import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import numbers_of, write_video

from dtf.data import dataset as dataset_module
from dtf.data import isolated
from dtf.data import storage as storage_module
from dtf.data.datamodule import init_worker
from dtf.data.dataset import BrokenVideo, EpochSampler, EvalDataset, ResumableLoader, TrainDataset, collate
from dtf.data.decode import VideoError
from dtf.data.isolated import IsolatedReader, ReadingProcess
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TestTransform, TrainTransform

pytestmark = [
    pytest.mark.slow,  # starts processes that hang and die
    pytest.mark.skipif(not isolated.FORKS, reason="needs a system where a child may be forked"),
]

LIMIT_SECONDS = 4.0  # a sound video of these needs a hundredth of it, where the machine is not busy
PLAIN = TrainTransform(48, crop="center", flip=0.0)


# ---- calls ----


def work(process: ReadingProcess, job: str) -> str:
    """What is asked for: an answer, or one of the ways to fail."""
    if job.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, job))
    if job == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        time.sleep(600)
    if job == "exit":
        os._exit(3)
    if job == "broken":
        raise VideoError("elsewhere", "is empty")
    if job == "module":
        raise ModuleNotFoundError("pip install it")
    if job == "memory":
        np.ones(8 << 30, np.uint8)
    if job == "error":
        raise IndexError("no\nsuch \x1b[31mframe")
    process.memory[:] = len(job)
    return str(os.getpid())


def caller():
    process = ReadingProcess((2, 3))

    def call(job, seconds=None):
        return process.call("v.mp4", functools.partial(work, process), job, seconds=seconds)

    return process, call


def test_answer_and_memory_come_back_from_one_process():
    process, call = caller()
    child, first = call("abc")
    again, second = call("abcd")
    assert child == again != str(os.getpid())
    assert first.tolist() == [[3] * 3] * 2
    assert second.tolist() == [[4] * 3] * 2
    process.close()
    assert call("abc")[0] != child


@pytest.mark.parametrize("forks", [False, True])
def test_what_was_read_stays_while_it_is_kept_and_is_not_copied_where_it_is_dropped(forks, monkeypatch):
    monkeypatch.setattr(isolated, "FORKS", forks and isolated.FORKS)
    process, call = caller()
    kept = [call("x" * number)[1] for number in range(1, 7)]
    assert [tensor.unique().tolist() for tensor in kept] == [[number] for number in range(1, 7)]
    view = kept[0].permute(1, 0)[1:]
    del kept
    for number in range(7, 11):
        assert call("x" * number)[1].unique().tolist() == [number]
    assert view.unique().tolist() == [1]
    del view
    places, child = set(), process._child
    for number in range(11, 30):
        last = call("x" * number)[1]
        assert last.unique().tolist() == [number]
        places.add(last.data_ptr())
        last.fill_(0)
    assert len(places) == 2, "two memories in turn, and no copy"
    assert process._child is child


FAULTS = {
    "SIGBUS": "crashed its reader (SIGBUS)",
    "SIGSEGV": "crashed its reader (SIGSEGV)",
    "SIGKILL": "crashed its reader (SIGKILL)",
    "exit": "crashed its reader (exit code 3)",
    "hang": "took longer than max_read_seconds=0.3 and was given up",
    "broken": "is empty",
    "memory": "needs too much memory to read (a video may take 4 GiB)",
    "error": "cannot be read (IndexError: no such \\x1b[31mframe)",
}


def test_every_fault_is_the_videos(capfd):
    """One line each, nothing on the terminal, and the next call works."""
    _, call = caller()
    for fault, reason in FAULTS.items():
        before = call("abc")[0]
        with pytest.raises(VideoError) as error:
            call(fault, 0.3 if fault == "hang" else None)
        assert error.value.reason == reason
        after = call("abc")[0]
        assert (after == before) is (fault == "broken"), "only a reader in a known state goes on"
    assert capfd.readouterr() == ("", "")


def test_what_is_given_up_is_gone():
    """Process, descriptors, memory: this one has what it had before."""
    _, call = caller()
    child = int(call("abc")[0])
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with pytest.raises(VideoError, match="given up"):
            call("hang", 0.05)
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        child = int(call("abc")[0])
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def test_a_missing_package_is_not_the_videos_fault():
    with pytest.raises(ModuleNotFoundError, match="pip install it"):
        caller()[1]("module")


def test_a_child_lost_between_calls_costs_nothing():
    _, call = caller()
    child = int(call("abc")[0])
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert call("abc")[0] != str(child)


def test_signals_to_the_run_do_not_reach_the_child():
    _, call = caller()
    child = int(call("abc")[0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(child, number)
    assert call("abc")[0] == str(child)


def test_interrupted_calls_mix_up_no_answers(monkeypatch):
    """Ctrl-C while it waits: the answer that was to come is not taken for that of the next call."""
    process, call = caller()
    call("abc")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(process._child, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("a")
    assert call("abcd")[1].tolist() == [[4] * 3] * 2


def test_each_process_has_a_child_of_its_own():
    """Of a copy that was forked or pickled; and the forked process leaves this one's child alone."""
    process, call = caller()
    child = call("abc")[0]
    assert pickle.loads(pickle.dumps(process)).shape == process.shape
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    fork = torch.multiprocessing.get_context("fork").Process(target=lambda: queue.put(call("abc")[0]))
    fork.start()
    fork.join(20)
    assert fork.exitcode == 0
    assert queue.get() != child
    assert call("abc")[0] == child


@pytest.mark.parametrize("end", ["raise SystemExit", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_child_ends_with_its_parent(end):
    """However that ends, and also in the middle of a read."""
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def parent():
        process, call = caller()
        queue.put(int(call("abc")[0]))
        process._child.pipe.send_bytes(b'["hang"]')
        exec(end)

    fork = context.Process(target=parent)
    fork.start()
    child = queue.get()
    fork.join(20)
    for _ in range(200):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.02)
    pytest.fail("the child outlived its parent")


def test_the_child_uses_one_thread():
    process = ReadingProcess((1,))
    assert process.call("v.mp4", torch.get_num_threads)[0] == 1


class Garbage:
    """In a circle, and noted where another process than its own frees it, as FFmpeg's threads would hang."""

    def __init__(self, noted: Path) -> None:
        self.circle, self.noted, self.process = self, noted, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            self.noted.touch()


def collect_and_touch(path: Path, *_: object) -> None:
    gc.collect()
    path.touch()


def test_the_child_frees_nothing_of_its_parent(tmp_path):
    """The parent itself does, afterwards."""
    garbage = weakref.ref(Garbage(tmp_path / "freed"))
    ReadingProcess((1,)).call("v.mp4", functools.partial(collect_and_touch, tmp_path / "ran"))
    assert os.listdir(tmp_path) == ["ran"]
    gc.collect()
    assert garbage() is None


def test_workers_free_nothing_of_their_parent(tmp_path):
    dataset = EvalDataset(VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(2), TestTransform(48))
    loader = ResumableLoader(
        dataset,
        batch_size=1,
        collate_fn=collate,
        sampler=EpochSampler(1, shuffle=False),
        num_workers=2,
        worker_init_fn=functools.partial(collect_and_touch, tmp_path / "ran"),
        multiprocessing_context="fork",
    )
    garbage = weakref.ref(Garbage(tmp_path / "freed"))
    list(loader)
    assert os.listdir(tmp_path) == ["ran"]
    gc.collect()
    assert garbage() is None


# ---- data sets ----


def write_lmdb(path: Path, count: int) -> Path:
    """An LMDB of frames with their numbers painted on them."""
    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8)).save(
                file, "JPEG"
            )
            transaction.put(f"{i + 1:05d}.jpg".encode(), file.getvalue())
    return path


class Shrinking(storage_module.LmdbReader):
    """Of the database "shrinking", which is cut short after it was mapped: touching a page is SIGBUS."""

    def __init__(self, path):
        if os.path.basename(path) == "shrinking":
            shutil.copyfile(f"{path}/whole.mdb", f"{path}/data.mdb")
        super().__init__(path)
        if self.name == "shrinking":
            os.truncate(f"{path}/data.mdb", 8192)


def open_odd(path, decoder):
    """As `open_video`, with decoders that do what some file makes them do."""
    name = os.path.basename(path)
    if name == "pipe.mp4":
        return av.open(path)  # waits inside FFmpeg for the other end, for ever
    if name == "index.mp4":
        return [][-1]
    if name == "memory.mp4":
        return np.ones(8 << 30, np.uint8)
    if name == "torch.mp4":
        return torch.zeros(2) @ torch.zeros(3)
    return storage_module.open_video(path, decoder)


ODD = {
    "pipe.mp4": "took longer than max_read_seconds=4 and was given up",
    "shrinking": "crashed its reader (SIGBUS)",
    "index.mp4": "cannot be read (IndexError: list index out of range)",
    "memory.mp4": "needs too much memory to read (a video may take 4 GiB)",
    "torch.mp4": "cannot be read (RuntimeError: inconsistent tensor size",
}


@pytest.fixture(scope="module")
def good_videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    return [write_video(folder / f"{i}.mp4", [i] * 4, size=(48, 48)) for i in range(8)]


@pytest.fixture
def odd_videos(tmp_path, good_videos, monkeypatch) -> VideoIndex:
    """One of each kind among eight good ones."""
    for path in good_videos:
        os.link(path, tmp_path / path.name)
    os.mkfifo(tmp_path / "pipe.mp4")
    database = write_lmdb(tmp_path / "shrinking", 40)
    (database / "data.mdb").rename(database / "whole.mdb")
    (database / "data.mdb").touch()
    for name in ("index.mp4", "memory.mp4", "torch.mp4"):
        (tmp_path / name).touch()
    monkeypatch.setattr(dataset_module, "open_video", open_odd)
    monkeypatch.setattr(storage_module, "LmdbReader", Shrinking)
    names = ["0.mp4", "pipe.mp4", "1.mp4", "shrinking", "2.mp4", "index.mp4", "3.mp4", "memory.mp4"]
    names += ["4.mp4", "torch.mp4", "5.mp4", "6.mp4", "7.mp4"]
    return VideoIndex(tmp_path, names, range(13))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_odd_videos_among_good_ones(odd_videos, num_workers):
    """Training takes other videos and names these; evaluation keeps them with the reason; all goes on."""
    # With this seed no other video is replaced by the one that is waited for.
    train = TrainDataset(odd_videos, FrameSampler(2), PLAIN, max_read_seconds=LIMIT_SECONDS)
    evaluation = EvalDataset(odd_videos, FrameSampler(2), TestTransform(48), max_read_seconds=LIMIT_SECONDS)
    names = [os.path.basename(odd_videos.path(i)) for i in range(13)]
    good = {i: int(name[0]) for i, name in enumerate(names) if name[0].isdigit()}
    for dataset in (train, evaluation):
        loader = ResumableLoader(
            dataset,
            batch_size=3,
            collate_fn=collate,
            sampler=EpochSampler(13, shuffle=False),
            num_workers=num_workers,
            worker_init_fn=init_worker,
            multiprocessing_context="fork" if num_workers else None,  # keeps what the test has patched
        )
        batches = list(loader)
        clips = [clip for batch in batches for clip in batch["video"].permute(0, 2, 3, 4, 1)]
        indices = [i for batch in batches for i in batch["video_index"].tolist()]
        errors = [error for batch in batches for error in batch["error"]]
        found = dict(video for error in errors for video in error)
        assert found.keys() == {odd_videos.path(i) for i in range(13)} - {odd_videos.path(i) for i in good}
        for path, reason in found.items():
            assert reason.startswith(ODD[os.path.basename(path)])
        for place, (clip, index, error) in enumerate(zip(clips, indices, errors, strict=True)):
            assert bool(error) is (place not in good)
            if dataset is train:
                assert numbers_of(clip.numpy()) == [good[index]] * 2
                assert index == place or error
            else:
                assert index == place
                assert clip.any() or place not in good or good[index] == 0


def test_decoding_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    """Not waiting but computing inside FFmpeg, on a sound video."""
    path = write_video(tmp_path / "v.mp4", 60, size=(640, 480), options={"preset": "ultrafast"})

    def decode_for_ever(path, decoder):
        while True:
            with storage_module.open_video(path, decoder) as reader:
                reader.read(range(60))

    monkeypatch.setattr(dataset_module, "open_video", decode_for_ever)
    dataset = EvalDataset(
        VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(60), TestTransform(48), max_read_seconds=0.1
    )
    reason = "took longer than max_read_seconds=0.1 and was given up"
    assert dataset[0]["error"] == [BrokenVideo(str(path), reason)]
    monkeypatch.undo()
    dataset.max_read_seconds = 60
    assert dataset[0]["error"] == []


def test_the_same_clip_without_a_child(tmp_path, monkeypatch):
    """In the process itself, as where there is no fork: the same bits, and any exception is the video's."""
    write_video(tmp_path / "v.mp4", 30, size=(96, 64))
    index = VideoIndex(tmp_path, ["v.mp4"], [0])
    augmented = TrainTransform(32, scale=(0.2, 1.0), flip=0.5, brightness=0.4)

    def clips():
        return [
            TrainDataset(index, FrameSampler(8), augmented, seed=3)[2, 0]["video"],
            EvalDataset(index, FrameSampler(8), TestTransform(32, num_crops=3), num_clips=2)[0]["video"],
        ]

    apart = clips()
    monkeypatch.setattr(isolated, "FORKS", False)
    monkeypatch.setattr(isolated, "_Child", None)
    assert all(torch.equal(a, b) for a, b in zip(apart, clips(), strict=True))
    monkeypatch.setattr(dataset_module, "open_video", lambda path, decoder: [][-1])
    [error] = EvalDataset(index, FrameSampler(8), TestTransform(32))[0]["error"]
    assert error.reason == "cannot be read (IndexError: list index out of range)"


def test_no_child_is_left_of_a_data_set(tmp_path):
    path = write_video(tmp_path / "v.mp4", 4, size=(48, 48))
    dataset = EvalDataset(VideoIndex(tmp_path, [path.name], [0]), FrameSampler(2), TestTransform(48))
    dataset[0]
    child = dataset._reading._child.pid
    del dataset
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# ---- a whole video ----


def test_frames_of_a_video_read_apart(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 7, size=(64, 48))
    reader = IsolatedReader(path, 60)
    assert (reader.path, reader.num_frames, reader.fps) == (str(path), 7, 30.0)
    assert reader.frame_seconds == pytest.approx(np.arange(7) / 30)
    frames = dict(reader.iter_forward(range(7)))
    assert list(frames) == list(range(7))
    assert numbers_of(np.stack(list(frames.values()))) == list(range(7))
    with pytest.raises(VideoError, match="does not exist"):
        IsolatedReader(tmp_path / "none.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.setattr(isolated, "open_video", av.open)  # waits for the other end, for ever
    with pytest.raises(VideoError, match="given up"):
        IsolatedReader(tmp_path / "pipe.mp4", 0.1)
