"""Processes that hang or crash cost their own job and nothing else."""

from __future__ import annotations

import os
import sys
import time

import pool_functions
import pytest

from dtf.data.pool import Lost, Stop, run_isolated

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the faults are made with POSIX signals")


@pytest.mark.slow
def test_lost_processes_are_replaced_and_the_rest_goes_on():
    jobs = [1, "hang", "segfault", 2, "killed", "exit", "raise", 3]
    start = time.monotonic()
    results = dict(run_isolated(pool_functions.work, jobs, num_workers=2, time_limit_seconds=1.5))
    assert time.monotonic() - start < 60
    assert {job: results[job] for job in (1, 2, 3)} == {1: 2, 2: 4, 3: 6}
    assert {job: results[job].reason for job in jobs if isinstance(job, str)} == {
        "hang": "took longer than 1.5 s and was cut off",
        "segfault": "crashed its process (SIGSEGV)",
        "killed": "crashed its process (SIGKILL)",
        "exit": "crashed its process (exit code 3)",
        "raise": "KeyError: 'no\\nsuch'",
    }


def test_jobs_are_drawn_as_they_are_needed_and_processes_end_with_the_generator():
    drawn = []

    def jobs():
        for i in range(10_000):
            drawn.append(i)
            yield "pid"

    results = run_isolated(pool_functions.work, jobs(), num_workers=2, time_limit_seconds=60)
    processes = {next(results)[1] for _ in range(20)}
    assert len(drawn) < 30
    results.close()
    assert 1 <= len(processes) <= 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_job_can_stop_the_run():
    with pytest.raises(Stop, match="the disk is full"):
        list(run_isolated(pool_functions.work, [1, "stop", 2], num_workers=1, time_limit_seconds=60))


def test_no_jobs_need_no_process():
    assert list(run_isolated(pool_functions.work, [], num_workers=2, time_limit_seconds=1)) == []


def test_what_is_lost_says_why_in_one_line():
    [(_, lost)] = run_isolated(pool_functions.work, ["raise"], num_workers=4, time_limit_seconds=60)
    assert isinstance(lost, Lost)
    assert "\n" not in lost.reason
