"""A process among those of a run: which one it is, what ends it, what it leaves in its environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dtf.errors import RunError
from dtf.runs.conf import with_override

FULL_ERROR = "HYDRA_FULL_ERROR"
RUN_FOLDER = "DTF_RUN_FOLDER"
"""Environment variable by which the first process tells the ones that it starts where the run lies."""
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)
"""Signals that ask a run to save and stop, those of them that this platform has."""
STOPPED = tuple(128 + number for number in STOP_SIGNALS)
"""Exit codes of a run that has saved because a signal asked it to stop, see `dtf.lit.survival`."""


def is_first_process() -> bool:
    """Whether this is the process of a run that writes files and prints."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK")
    )


def share_folder(arguments: list[str]) -> list[str]:
    """Under torchrun or srun all processes start at once: no clock may decide the folder.

    Processes that Lightning starts itself need nothing: they are told the folder (`RUN_FOLDER`).
    """
    outer = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if not outer or RUN_FOLDER in os.environ:
        return arguments
    if not any(a.startswith("output=") for a in arguments):
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none" and "SLURM_JOB_ID" in os.environ:
            job = f"slurm-{os.environ['SLURM_JOB_ID']}"
        if job == "none":
            raise RunError("several processes were started at once: name their common folder, output=DIR")
        arguments = with_override(arguments, f"output=outputs/{job}")
    if not is_first_process():
        arguments = with_override(arguments, "hydra.output_subdir=null")
    return arguments


@contextmanager
def environment_of_run(full_error: str | None) -> Iterator[None]:
    """What a run leaves in this process ends with it: another one may follow."""
    environment = dict(os.environ)
    restore(FULL_ERROR, full_error)
    try:
        yield
    finally:
        # The next run finds its own processes: the group of this one and where it met are of no use to it.
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def restore(name: str, value: str | None) -> None:
    """Set an environment variable to what it was; None: it was not there."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
