"""Run a function on many jobs in processes that may hang or crash without harm.

`concurrent.futures` gives up on all jobs when one process dies, and cannot stop one that hangs. Broken
videos do both to decoders, so here each process is watched, replaced when it is lost, and the rest goes on.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

_ORPHAN_SECONDS = 30.0
_START_SECONDS = 300.0  # importing torch from a slow network disk takes minutes
_READY = "ready"


class Stop(Exception):
    """Raised by a job for what concerns all jobs (a full disk); the run ends with it."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job that failed, hung or crashed.

    Attributes:
        reason: one line.
    """

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Any
    deadline: float
    ready: bool = False  # its imports are done and it has the job


def run_isolated(
    function: Callable[[Any], Any], jobs: Iterable[Any], *, num_workers: int, time_limit_seconds: float
) -> Generator[tuple[Any, Any], None, None]:
    """Apply a function to jobs in processes of their own, yield (job, result) as they are done in any order.

    Jobs are drawn as processes get free, so their number does not matter for memory. Closing the generator
    ends all processes.

    Args:
        function: takes a job; a function of a module, no closure.
        jobs: pickled one by one.
        num_workers: processes.
        time_limit_seconds: a job that takes longer is ended together with its process.

    Yields:
        (job, result), the result being `Lost` where the job raised, hung or crashed its process.

    Raises:
        Stop: raised by a job.
        RuntimeError: the processes do not start.
    """
    assert num_workers > 0
    methods = multiprocessing.get_all_start_methods()
    # Forking this process is not safe with threads; a server that has the imports done forks in no time.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([function.__module__])
    remaining = iter(jobs)
    none = object()
    job = next(remaining, none)
    workers: list[_Worker] = []
    try:
        while True:
            while job is not none and len(workers) < num_workers:
                workers.append(_start(context, function, job, time_limit_seconds))
                job = next(remaining, none)
            if not workers:
                return
            timeout = max(0.0, min(w.deadline for w in workers) - time.monotonic())
            wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], timeout)
            for worker in list(workers):
                done, result = _poll(worker, time_limit_seconds)
                if not done:
                    continue
                finished, worker.job = worker.job, none
                if isinstance(result, Lost) or job is none:
                    workers.remove(worker)
                    _end(worker)
                else:
                    worker.job = job
                    _give(worker, time_limit_seconds)
                    job = next(remaining, none)
                if isinstance(result, Stop):
                    raise result
                yield finished, result
    finally:
        for worker in workers:
            _end(worker)


def _start(context: Any, function: Callable[[Any], Any], job: Any, time_limit_seconds: float) -> _Worker:
    ours, theirs = context.Pipe()
    arguments = (theirs, function.__module__, function.__qualname__, time_limit_seconds)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, job, time.monotonic() + _START_SECONDS)


def _give(worker: _Worker, time_limit_seconds: float) -> None:
    worker.deadline = time.monotonic() + time_limit_seconds
    try:
        worker.pipe.send(worker.job)
    except OSError:
        worker.deadline = 0.0  # it died in between: the next look at it says how


def _poll(worker: _Worker, time_limit_seconds: float) -> tuple[bool, Any]:
    """(whether its job is over, the result)."""
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if message != _READY:
                return True, message
            worker.ready = True
            _give(worker, time_limit_seconds)
        died = worker.process.exitcode is not None
    except (EOFError, OSError, pickle.UnpicklingError):
        worker.process.join(5.0)
        died = True
    if died:
        reason = f"crashed its process ({cause(worker.process.exitcode)})"
    elif time.monotonic() > worker.deadline:
        reason = f"took longer than {time_limit_seconds:g} s and was cut off"
    else:
        return False, None
    if not worker.ready:
        raise RuntimeError(f"worker processes do not start ({cause(worker.process.exitcode)})")
    return True, Lost(reason)


def num_cores() -> int:
    """CPU cores of this process."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cause(exitcode: int | None) -> str:
    """What a process died of, for messages: "SIGSEGV", or its exit code."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    # A process that waits for a job leaves by itself, but one that hangs ignores polite requests.
    worker.process.kill()
    worker.process.join(5.0)


def _serve(pipe: Connection, module: str, name: str, time_limit_seconds: float) -> None:
    """What a process does: take jobs until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    function = getattr(importlib.import_module(module), name)
    pipe.send(_READY)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        # Should the parent be killed while this job hangs, the alarm ends the orphan.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, time_limit_seconds + _ORPHAN_SECONDS)
        result: Any
        try:
            result = function(job)
        except Stop as stop:
            result = stop
        except Exception as error:  # whatever one odd file does must not end the run of the others
            result = Lost(" ".join(f"{type(error).__name__}: {error}".split()))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(result)
        except OSError:
            return
