"""The folder of a run: its files by name, what they say, and that one process at a time is at work there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtf.errors import RunError
from dtf.files import MOST_BYTES_YAML, explaining, open_sound, read_json, read_text, read_yaml
from dtf.runs.lock import lock
from dtf.runs.measure import measures
from dtf.runs.process import RUN_FOLDER, is_first_process

SWEEP_FOLDER = "DTF_SWEEP_FOLDER"
"""Environment variable by which a sweep tells its runs where it lies."""
FAILURE = "failure.txt"
"""In the folder of a run that failed: the reason in the first line, then the trace."""
RESULTS = "results.json"
"""In the folder of a run that is finished."""
OVERRIDES = ".hydra/overrides.yaml"
"""In the folder of a run: what it was started with."""
LOCK = ".lock"
"""In the folder of a run or a search: locked by the process that is at work there."""
SECONDS_TO_WAIT = 20.0
"""For a folder's last process, which may still have to save."""


class FolderInUse(RunError):
    """Another process is at work in the folder; nothing in it has been touched."""

    code = 75  # os.EX_TEMPFAIL, which not every platform has


def run_folder() -> Path:
    """The folder of the present run, the same in all of its processes."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and RUN_FOLDER in os.environ:
        return Path(os.environ[RUN_FOLDER])
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    os.environ[RUN_FOLDER] = str(folder)
    return folder


def sweep_folder() -> Path | None:
    """The folder of the sweep that the present run belongs to; None for a run of its own."""
    return Path(os.environ[SWEEP_FOLDER]) if SWEEP_FOLDER in os.environ else None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time be at work in a folder; the first of those that a run has.

    The operating system gives the lock back when the process ends, however it ends.

    Raises:
        FolderInUse: another process is, and goes on being it for `SECONDS_TO_WAIT`.
        ValueError: this platform has no locks.
    """
    if not is_first_process():
        yield
        return
    with explaining(folder / LOCK):
        file = open(folder / LOCK, "a")  # noqa: SIM115  # closed below, with the lock
    with file:
        end = time.monotonic() + SECONDS_TO_WAIT
        while not lock(file):
            if time.monotonic() > end:
                raise FolderInUse(
                    f"another process is at work in {folder}: wait for its end, or choose another folder "
                    "(output=DIR)"
                )
            time.sleep(0.1)
        yield


def file_of(folder: Path, name: str) -> Path | None:
    """A file in the folder of a run, which may come from anywhere; None where there is none.

    Raises:
        ValueError: it leads out of the folder.
    """
    path = folder / name
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is damaged: it leads out of its folder")
    return path


def failure(folder: Path) -> str | None:
    """Why the run in `folder` failed, in one line; None where it did not."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    with open_sound(path) as file:
        return file.readline(1 << 16).decode("utf-8", "replace").rstrip("\n")


def read_overrides(path: Path) -> list[str]:
    """What a run was started with, as texts that may be anything.

    Raises:
        ValueError: the file is damaged.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{path} is damaged: it is no list of settings")
    return entries


def read_results(path: Path) -> dict[str, Any]:
    """What a results.json says, which may come from anywhere.

    Returns:
        With "metrics", {} where it has none.

    Raises:
        ValueError: it is damaged: no JSON object, or its entries have other types than train.py writes.
    """
    found = {"metrics": {}} | read_json(path)
    kinds: dict[str, Any] = {"config": Mapping, "metrics": Mapping, "split": str, "split_is": str}
    try:
        known = [measure.name for measure in measures(found.get("task"))]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    kinds |= dict.fromkeys((*known, "seconds"), int | float | None)
    figures = found["metrics"] if isinstance(found["metrics"], Mapping) else {}
    for key, value in (found | {f"metrics.{name}": value for name, value in figures.items()}).items():
        if not isinstance(
            value, int | float | None if key.startswith("metrics.") else kinds.get(key, object)
        ):
            raise ValueError(f"{path} is damaged: {key} cannot be {str(value)[:80]}")
    return found


def refuse_training(folder: Path) -> None:
    """Refuse a folder of a training for an evaluation, which would replace its files.

    Raises:
        ValueError: it is one, or its config.yaml cannot be read.
    """
    config = folder / "config.yaml"
    trained = config.exists() and "\noptim:" in read_text(config, MOST_BYTES_YAML)
    if trained or (folder / "checkpoints").exists():
        raise ValueError(f"output={folder} is the folder of a training: give the evaluation one of its own")
