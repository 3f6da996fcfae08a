"""Jobs of tests/data/test_pool.py, in a module of their own that worker processes can import quickly."""

from __future__ import annotations

import os
import signal
import time

from dtf.data.pool import Stop


def work(job):
    """Twice the number, or one of the ways to fail."""
    if job == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        while True:
            time.sleep(1)
    if job == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "raise":
        raise KeyError("no\nsuch")
    if job == "stop":
        raise Stop("the disk is full")
    return os.getpid() if job == "pid" else 2 * job
