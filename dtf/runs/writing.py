"""What each run leaves in its folder beside its results: settings, log, the reason of a failure."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtf.errors import RunError
from dtf.files import replacing
from dtf.runs.folder import FAILURE, OVERRIDES, RESULTS, run_folder, sweep_folder
from dtf.runs.process import is_first_process
from dtf.text import printable


def begin() -> None:
    """Make its folder that of the present run: called when all checks have passed, in each process.

    Until then nothing in the folder of an earlier run is changed, so that a start that is refused costs it
    nothing: neither its settings, by which it is resumed, nor its log, nor what it says of a failure.
    """
    while _to_begin:
        _to_begin.pop()()


_to_begin: list[Callable[[], None]] = []


@contextmanager
def kept_in_folder(cfg: DictConfig, explain: Callable[[BaseException], str | None]) -> Iterator[None]:
    """Leave settings, log and the reason of a failure in the run's folder, from `begin` on.

    Args:
        cfg: the settings.
        explain: an error in one line; None: it is ours.
    """
    folder, settings, held = run_folder(), settings_of(cfg), _hold_log()
    has_begun = False

    def write() -> None:
        nonlocal has_begun
        has_begun = True
        if is_first_process():
            (folder / FAILURE).unlink(missing_ok=True)
            write_settings(folder, settings)
        _release_log(held, write=True)

    _to_begin[:] = [write]
    # A sweep has written its run's settings already.
    earlier = ("checkpoints", RESULTS) if sweep_folder() else ("checkpoints", RESULTS, OVERRIDES)
    if not any((folder / name).exists() for name in earlier):
        begin()
    try:
        yield
    except Exception as error:
        # A sweep is told by this file, whatever has become of its run.
        if has_begun or sweep_folder() is not None:
            text = explain(error) or f"{type(error).__name__}: {error}"
            write_failure(folder, text, traceback.format_exc())
        raise
    finally:
        _to_begin.clear()
        _release_log(held, write=False)


def settings_of(cfg: DictConfig) -> dict[str, str]:
    """What Hydra keeps of a run, by file; the overrides come last: by them a run is resumed."""
    hydra_cfg: Any = HydraConfig.instance().cfg
    nodes = {"config.yaml": cfg, "hydra.yaml": hydra_cfg, "overrides.yaml": hydra_cfg.hydra.overrides.task}
    return {f".hydra/{name}": OmegaConf.to_yaml(node) for name, node in nodes.items()}


def write_settings(folder: Path, settings: Mapping[str, str]) -> None:
    """Write what `settings_of` returns into a run's folder."""
    for name, text in settings.items():
        with replacing(folder / name) as file:
            file.write(text)


def _hold_log() -> dict[logging.Handler, logging.FileHandler]:
    """Put handlers that remember in the places of those that write files."""
    handlers, held = logging.getLogger().handlers, {}
    for place, handler in enumerate(handlers):
        if isinstance(handler, logging.FileHandler):
            handlers[place] = MemoryHandler(sys.maxsize, sys.maxsize, handler, flushOnClose=False)
            handlers[place].setLevel(handler.level)
            held[handlers[place]] = handler
    return held


def _release_log(held: dict[logging.Handler, logging.FileHandler], write: bool) -> None:
    """Put the handlers that write files back, and write what was remembered, or forget it."""
    handlers = logging.getLogger().handlers
    for remembering, handler in held.items():
        if write:
            remembering.flush()
        remembering.close()
        handlers[:] = [handler if h is remembering else h for h in handlers]
    held.clear()


def write_failure(folder: Path, reason: str, trace: str) -> None:
    """Leave the reason of a failure, in one line, and its trace in a run's folder."""
    # A full disk may be what is wrong; the error itself is shown in any case.
    with suppress(OSError, RunError), replacing(folder / FAILURE) as file:
        file.write(f"{printable(' '.join(reason.split()))}\n\n{trace}")
