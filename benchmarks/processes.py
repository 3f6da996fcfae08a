"""Processes of a benchmark: this one and all below it, workers and the children that read for them."""

from __future__ import annotations

import os
import time
from pathlib import Path


def family(process: int | None = None) -> list[int]:
    """Numbers of a process (None: this one) and of all below it."""
    process = process or os.getpid()
    found = [process]
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        found += [number for child in children.read_text().split() for number in family(int(child))]
    return found


def cpu_seconds() -> float:
    """CPU time that this process and all that now live below it have taken."""
    # The clock of a process, all its threads: its number on Linux, as pthread_getcpuclockid(3) makes it.
    return sum(time.clock_gettime((~process << 3) | 2) for process in family())
