"""Reading in a process of its own: what a video does to its decoder, it does to nothing else.

A decoder that is stuck, in a loop of its own or in a read that never returns, can be interrupted neither by
an exception nor by a signal handler, and a damaged file that is mapped into memory kills the process that
reads it. So each process that wants clips has one child that opens, decodes and crops. It is told the number
of a video through a pipe, leaves the clip in memory that both share, and is killed where it takes too long:
its thread, files and memory are then gone. The next video gets a new child, forked in a few milliseconds.

Pebble, loky and `multiprocessing` itself refuse to start processes in the daemonic workers of a DataLoader.
Children are forked on Linux only: elsewhere it is not safe to fork a process with threads, so reading happens
in the process itself, without a time limit, and a crash ends the run.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import json
import math
import mmap
import os
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from dtf.data.pool import cause
from dtf.data.reader import FrameReader, VideoError
from dtf.data.storage import open_video
from dtf.text import printable

FORKS = sys.platform == "linux" and hasattr(os, "fork")

READ_MEMORY_BYTES = 4 << 30
"""What reading may take on top of what the process has: decoding 8K with all its references fits."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_REASON_SIGNS = 200
_END_SECONDS = 5.0
# One is read into, one is with a caller that drops it when it has the next, and one is that next.
_NUM_MEMORIES = 3


@contextmanager
def garbage_left_in_forks() -> Iterator[None]:
    """What this process has made so far is never collected in a process that it forks meanwhile.

    A decoder of FFmpeg has threads, and a fork is without them: where the collector frees one there, it waits
    for them for ever. What came with the fork also stays shared memory.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class ReadingProcess:
    """Calls functions that read videos in a child process, which may hang or crash without harm.

    The child is a fork of this process as it is at the first call, or at the next one after a child was lost:
    what changes here later does not reach it. Each process that has a copy of this object (a worker of a
    DataLoader, forked or spawned) starts a child of its own. It ends with its process, however that ends.

    Args:
        shape: of what is read, uint8.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._child: _Child | None = None
        self._renew()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadingProcess, (self.shape,)

    def _renew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._memories: list[_Memory] = []
        self._number = 0  # of the memory that is read into

    @property
    def memory(self) -> torch.Tensor:
        """Where the function that is called puts what it read."""
        assert self._memories, "the memory is there during a call"
        return self._memories[self._number].tensor()

    def call(
        self, path: str, function: Callable[..., Any], *request: Any, seconds: float | None = None
    ) -> tuple[Any, torch.Tensor]:
        """Read a video.

        Args:
            path: of the video, for messages.
            function: reads into `memory`; takes `request`. The same in each call: a child keeps the one that
                it was started with, and between calls what that remembers.
            request: numbers and texts.
            seconds: time limit; None: none.

        Returns:
            What the function returns (numbers, texts, lists of them), and what it left in `memory`, for the
            caller to keep and to change. A process that is forked while the caller keeps it shares it.

        Raises:
            VideoError: the function raised any exception, took too long, or killed its process.
            ModuleNotFoundError: raised by the function: a package is missing, which is not the video's fault.
        """
        if self._process != os.getpid():  # a fork: child, memory and lock are those of the other process
            self._end()
            self._renew()
        with self._lock:
            if not self._memories:
                self._memories = [_Memory(self.shape) for _ in range(_NUM_MEMORIES)]
            self._number, *others = [n for n, memory in enumerate(self._memories) if memory.is_free]
            kind, answer = self._ask(function, (self._number, *request), seconds)
            if kind == "missing":
                raise ModuleNotFoundError(answer)
            if kind == "done":
                # Without a copy, where the next call has another one to read into.
                return answer, self._memories[self._number].lend() if others else self.memory.clone()
            if kind == "failed":  # what such an exception leaves behind is not known
                self._end()
            raise VideoError(path, answer)

    def close(self) -> None:
        """End the child. The next call starts another."""
        self._end()

    def _read(self, function: Callable[..., Any], number: int, *request: Any) -> Any:
        self._number = number  # in the child
        return function(*request)

    def _ask(
        self, function: Callable[..., Any], request: Sequence[Any], seconds: float | None
    ) -> Sequence[Any]:
        if not FORKS:
            return _answer(functools.partial(self._read, function), request)
        asked = json.dumps(request).encode()
        try:
            try:
                child = self._child or self._start(function)
                child.pipe.send_bytes(asked)
            except BrokenPipeError:  # it died while it had nothing to do, which is no video's fault
                self._end()
                child = self._start(function)
                child.pipe.send_bytes(asked)
            if not child.answers(seconds):
                self._end()
                return "given up", f"took longer than max_read_seconds={seconds:g} and was given up"
            return json.loads(child.pipe.recv_bytes())
        except (EOFError, OSError):  # its end of the pipe is closed: it died
            return "given up", f"crashed its reader ({self._end()})"
        except BaseException:  # Ctrl-C: the answer to come is to nobody's question
            self._end()
            raise

    def _start(self, function: Callable[..., Any]) -> _Child:
        self._child = _Child(functools.partial(self._read, function))
        self._finish = weakref.finalize(self, self._child.end)
        return self._child

    def _end(self) -> str:
        if self._child is None:
            return ""
        self._child = None
        return self._finish() or ""


class IsolatedReader(FrameReader):
    """The frames of a video, read in a process of its own, each handed out in memory of its own.

    Args:
        path: of the video, of any kind that has one.
        max_read_seconds: for opening the video, and for each frame; None: no limit.

    Attributes:
        errors, filled: not counted, 0.

    Raises:
        VideoError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], max_read_seconds: float | None = None) -> None:
        self.path = os.path.abspath(path)
        self.name = os.path.basename(self.path)
        self._seconds = max_read_seconds
        with closing(ReadingProcess((1,))) as process:
            about, _ = process.call(self.path, functools.partial(_about, self.path), seconds=max_read_seconds)
        self.num_frames, self.fps, self._times, self._shape = about

    @property
    def frame_seconds(self) -> np.ndarray | None:
        """See `FrameReader`."""
        return None if self._times is None else np.array(self._times)

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """As `iter_forward`."""
        return self.iter_forward(indices)

    def iter_forward(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameReader`."""
        wanted = self._wanted(indices)
        with closing(ReadingProcess(self._shape)) as process:

            def steps() -> Iterator[int]:
                with open_video(self.path) as reader:
                    for index, frame in reader.iter_forward(wanted):
                        process.memory[:] = torch.from_numpy(frame)
                        yield index

            step = functools.partial(next, steps())
            for _ in wanted:
                index, frame = process.call(self.path, step, seconds=self._seconds)
                yield index, frame.numpy()


def _about(path: str) -> tuple[int, float, list[float] | None, tuple[int, ...]]:
    """Number, rate, times and (H, W, C) of the frames."""
    with open_video(path) as reader:
        [(_, frame)] = reader.iter_forward([0])
        times = reader.frame_seconds
        return reader.num_frames, reader.fps, None if times is None else times.tolist(), frame.shape


class _Child:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.parent = os.getpid()
        self.pipe, theirs = Pipe()
        self._status: int | None = None
        with garbage_left_in_forks():
            with warnings.catch_warnings():
                # Python warns where there are threads. The child has none of them and needs none: like a
                # worker of a DataLoader, it only reads.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                try:
                    self.pipe.close()
                    _serve(theirs, function, self.parent)
                finally:
                    os._exit(1)
        theirs.close()
        self._waiting = select.poll()  # once: `Connection.poll` makes a selector in each call
        self._waiting.register(self.pipe, select.POLLIN)

    def answers(self, seconds: float | None) -> bool:
        """Wait for an answer, or for its end; False: neither came in time."""
        return bool(self._waiting.poll(None if seconds is None else math.ceil(seconds * 1e3)))

    def alive(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def end(self) -> str:
        """Kill it where it lives; returns what it died of."""
        self.pipe.close()
        if os.getpid() != self.parent:  # a fork of the parent: the child is not its own
            return ""
        stop = time.monotonic() + _END_SECONDS
        while self.alive() and time.monotonic() < stop:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        # One that waits for a dead disk lives until the kernel lets it go, but reads no more.
        return cause(None if self._status is None else os.waitstatus_to_exitcode(self._status))


class _Memory:
    """uint8 memory that this process shares with those that it forks; it takes some once it is written."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = shape
        self._map = mmap.mmap(-1, math.prod(shape))
        self._lent: Callable[[], object] = lambda: None

    @property
    def is_free(self) -> bool:
        """Whether nobody has a tensor of it that was lent."""
        return self._lent() is None

    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(self._map, dtype=torch.uint8).view(*self._shape)

    def lend(self) -> torch.Tensor:
        """A tensor of it; it is not free while the tensor, or another one of the same storage, lives."""
        view = memoryview(self._map)
        self._lent = weakref.ref(view)
        return torch.frombuffer(view, dtype=torch.uint8).view(*self._shape)


# ---- in the child ------------------------------------------------------------------------------------------


def _serve(pipe: Connection, function: Callable[..., Any], parent: int) -> None:
    """What the child does: read what it is asked for until its parent is gone."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        return
    faulthandler.disable()
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)  # the parent says what happened, in one line
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the parent's to handle, and it ends this process with itself
    torch.set_num_threads(1)
    # Memory of a clip goes back to the system and comes again, page by page, unless the allocator keeps some.
    # musl's has no such setting.
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        _libc().mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    _limit_memory()
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(json.dumps(_answer(function, request)).encode())


def _answer(function: Callable[..., Any], request: Sequence[Any]) -> tuple[str, Any]:
    try:
        return "done", function(*request)
    except VideoError as error:
        return "broken", error.reason
    except ModuleNotFoundError as error:
        return "missing", str(error)
    except MemoryError:
        return "failed", f"needs too much memory to read (a video may take {READ_MEMORY_BYTES >> 30} GiB)"
    except Exception as error:  # whatever one odd file does must not end the run of the others
        text = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        return "failed", f"cannot be read ({text[:_REASON_SIGNS]})"


def _limit_memory() -> None:
    import resource

    with open("/proc/self/status") as file:
        [data_kb] = [int(line.split()[1]) for line in file if line.startswith("VmData:")]
    limit = (data_kb << 10) + READ_MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(
        resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
