"""The time limit, on reads that really never return: alone, in the data sets, and in worker processes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_files import numbers_of, write_video

from dtf.data import dataset as dataset_module
from dtf.data.datamodule import init_worker
from dtf.data.dataset import EpochSampler, EvalDataset, ResumableLoader, TrainDataset, collate
from dtf.data.decode import VideoReader
from dtf.data.limit import TimeLimitError, call_within
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TestTransform, TrainTransform

LIMIT_SECONDS = 0.7
PLAIN = TrainTransform(48, crop="center", flip=0.0)


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A named pipe that nobody writes to: FFmpeg's open waits for it inside C code, for ever."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    yield path
    # Let the threads that still wait there end.
    for _ in range(100):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            break
        time.sleep(0.02)


def open_waiting(path, decoder):
    """As `open_video`, without the check that refuses pipes beforehand."""
    return av.open(path) if path.endswith("pipe.mp4") else VideoReader(path)


def test_result_and_errors_come_back():
    assert call_within(5.0, divmod, 7, 2) == call_within(None, divmod, 7, 2) == (3, 1)
    assert call_within(5.0, dict, a=1) == {"a": 1}
    for seconds in (5.0, None):
        with pytest.raises(ZeroDivisionError):
            call_within(seconds, divmod, 1, 0)
    with pytest.raises(TimeoutError, match="of its own"):  # not mistaken for the limit
        call_within(5.0, raise_timeout)


def raise_timeout():
    raise TimeoutError("of its own")


def test_one_thread_serves_many_calls():
    names = {call_within(5.0, threading.get_ident) for _ in range(20)}
    assert len(names) == 1
    assert names != {threading.get_ident()}


def test_a_read_that_never_returns_is_given_up(pipe):
    start = time.perf_counter()
    with pytest.raises(TimeLimitError, match=r"took longer than 0\.7 s"):
        call_within(LIMIT_SECONDS, av.open, str(pipe))
    assert LIMIT_SECONDS <= time.perf_counter() - start < LIMIT_SECONDS + 2
    assert call_within(LIMIT_SECONDS, abs, -1) == 1, "the next call has a new thread"


def test_decoding_that_takes_too_long_is_given_up(tmp_path):
    """Not waiting but computing inside FFmpeg, on a sound video."""
    path = write_video(tmp_path / "v.mp4", 60, size=(640, 480), options={"preset": "ultrafast"})
    dataset = EvalDataset(
        VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(60), TestTransform(48), max_read_seconds=0.01
    )
    assert dataset[0]["error"] == f"{path}: took longer than max_read_seconds=0.01 and was given up"
    dataset.max_read_seconds = 60
    assert dataset[0]["error"] == ""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hanging_decoder_in_the_loader(pipe, tmp_path, monkeypatch, num_workers):
    """Training takes another video and names this one; evaluation keeps it with the reason; all goes on."""
    for i in range(3):
        write_video(tmp_path / f"{i}.mp4", [i] * 4, size=(48, 48))
    index = VideoIndex(tmp_path, ["0.mp4", pipe.name, "1.mp4", "2.mp4"], range(4))
    monkeypatch.setattr(dataset_module, "open_video", open_waiting)
    reason = f"{pipe}: took longer than max_read_seconds=0.7 and was given up"

    train = TrainDataset(index, FrameSampler(2), PLAIN, max_read_seconds=LIMIT_SECONDS)
    evaluation = EvalDataset(index, FrameSampler(2), TestTransform(48), max_read_seconds=LIMIT_SECONDS)
    for dataset in (train, evaluation):
        loader = ResumableLoader(
            dataset,
            batch_size=2,
            collate_fn=collate,
            sampler=EpochSampler(4, shuffle=False),
            num_workers=num_workers,
            worker_init_fn=init_worker,
            multiprocessing_context="fork" if num_workers else None,  # keeps what the test has patched
        )
        start = time.perf_counter()
        first, second = loader
        assert time.perf_counter() - start < 30
        assert second["error"] == ["", ""]
        assert first["error"][0] == ""
        if dataset is evaluation:
            assert first["error"][1] == reason
            assert first["video_index"].tolist() == [0, 1]
            assert not first["video"][1].any()
        else:
            assert set(first["error"][1].splitlines()) == {reason}
            assert first["video_index"][1] != 1
            painted = numbers_of(first["video"][1].permute(1, 2, 3, 0).numpy())
            videos = {0: 0, 2: 1, 3: 2}
            assert painted == [videos[int(first["video_index"][1])]] * 2


def test_limit_survives_a_fork():
    """A worker forked after the main process has used its thread makes its own."""
    assert call_within(5.0, abs, -1) == 1
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(call_within(5.0, os.getpid)))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert queue.get() == process.pid


def test_limited_reading_uses_the_threads_it_is_given(tmp_path):
    """torch's setting of one thread per worker also holds in the thread of the limit."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert call_within(5.0, torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)


def test_same_clip_with_and_without_limit(tmp_path):
    write_video(tmp_path / "v.mp4", 30, size=(96, 64))
    index = VideoIndex(tmp_path, ["v.mp4"], [0])
    clips = [
        TrainDataset(index, FrameSampler(8), TrainTransform(32), seed=3, max_read_seconds=limit)[2, 0][
            "video"
        ]
        for limit in (None, 60)
    ]
    assert np.array_equal(*(clip.numpy() for clip in clips))
