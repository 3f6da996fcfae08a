"""What tests run in processes of their own, in a module that those can import quickly."""

from __future__ import annotations

import os
import signal
import time

from dtf.data.pool import Stop
from dtf.data.prepare import main
from dtf.data.prepare.jobs import probe


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


def probe_with_bad_decoder(job):
    """`probe`, but with a decoder that hangs at one video and crashes at another."""
    if os.path.basename(job.path).startswith("HANG"):
        time.sleep(600)
    if os.path.basename(job.path).startswith("CRASH"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return probe(job)


def prepare(arguments):
    """`python -m dtf.data.prepare` without a new interpreter."""
    raise SystemExit(main(arguments))
