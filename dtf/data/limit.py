"""Calls with a time limit that also holds inside C code, where neither exceptions nor signals get through."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _Runner:
    """A daemon thread that makes one call after the other."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="limited call", daemon=True).start()

    def submit(self, job: _Job | None) -> None:
        """Make this call next; None: end after the calls so far."""
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args, kwargs = job
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # not swallowed: raised again where the call was asked for
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del job, future, function, args, kwargs  # keep no clip alive while waiting


_local = threading.local()


class TimeLimitError(Exception):
    """A call took longer than it may."""


def call_within(seconds: float | None, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function, but wait for it no longer than `seconds`.

    A decoder that is stuck, in a loop of its own or in a read that never returns, can be interrupted neither
    by an exception nor by a signal handler, since Python code runs only after it returns. So the call is made
    in a thread, which costs about 0.03 ms, and given up together with its thread when time is up. The lost
    thread keeps what it holds (a file, memory, in a loop also a share of a core) until its call returns
    or the process ends, which it does not hinder. What is called must release the interpreter lock while it
    works, as PyAV does.

    Args:
        seconds: time limit; None: none, and the call is made directly.
        function, args, kwargs: what to call. After a timeout it may still be running: let it share nothing.

    Returns:
        What the function returns; what it raises is raised here.

    Raises:
        TimeLimitError: time is up (not TimeoutError, which reading a file may raise itself).
    """
    if seconds is None:
        return function(*args, **kwargs)
    runner: _Runner | None = getattr(_local, "runner", None)
    if runner is None or runner.process != os.getpid():  # threads do not survive a fork
        runner = _local.runner = _Runner()
    future: Future[R] = Future()
    runner.submit((future, function, args, kwargs))
    try:
        done = wait([future], seconds).done
    except BaseException:  # Ctrl-C: the call goes on without us
        _abandon(runner)
        raise
    if not done:
        _abandon(runner)
        raise TimeLimitError(f"took longer than {seconds:g} s")
    try:
        return future.result()
    finally:
        del future  # an error's traceback holds this frame, and the future the error


def _abandon(runner: _Runner) -> None:
    runner.submit(None)
    _local.runner = None
