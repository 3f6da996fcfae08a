"""What train.py and eval.py do around their work: settings from conf/, a folder, errors in one line.

`command("train")` turns a function of a config into a Hydra program. Beyond `hydra.main` it
* answers a wrong setting with one line that names the nearest right one (`composing`),
* shows a user's mistake as `error: ...` with exit code 1, without a trace (`errors`; HYDRA_FULL_ERROR=1
  shows it),
* decides the output folder once for all processes of a run (`process`, `folder`),
* lets one process at a time be at work in a folder, which gets the settings, the log and the reason of a
  failure (`record`),
* gives each run of a sweep (`-m`) a process of its own: whatever becomes of it, the others go on
(`sweeping`).
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dtf.runs.composing import explain, name_networks
from dtf.runs.errors import one_line_errors
from dtf.runs.folder import alone_in, run_folder
from dtf.runs.help import help_text
from dtf.runs.process import FULL_ERROR, environment_of_run, is_first_process, restore, share_folder
from dtf.runs.sweeping import Finished, SweepFolder, end_with_sweep, run_of_sweep, say_what_is_swept, summary
from dtf.runs.writing import kept_in_folder
from dtf.text import as_started, escape_logs

Prepare = Callable[[list[str]], list[str]]


def command(
    config_name: str,
    prepare: Prepare | None = None,
    finished: Finished = lambda folder, config: None,
    summarize: Callable[[Path], int] = lambda folder: 0,
) -> Callable[[Callable], Callable[[], None]]:
    """Make a Hydra program of a function.

    One piece, though long: what stands before Hydra and what it runs are functions that share these settings.

    Args:
        config_name: file in the folder conf/ beside the function's file, without ".yaml".
        prepare: sees and changes the command-line arguments before Hydra does.
        finished: from a run's folder and settings to its results; None: it has none for these settings. Runs
            of a sweep that are finished are not started again.
        summarize: closes a sweep, given its folder; returns how many of its runs failed.

    Returns:
        A decorator for `function(cfg) -> metrics`. The decorated function takes no argument and exits the
        process with code 1 on an error, with 75 where another process is at work in the run's folder.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        script = Path(inspect.getfile(function)).resolve()
        conf = script.parent / "conf"
        explained = functools.partial(explain, conf=conf)

        @functools.wraps(function)
        def task(cfg: DictConfig) -> Any:
            # Hydra has made the handlers by now.
            escape_logs()
            _set_up_log(cfg)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return run_of_sweep(script, cfg, full_error, finished)
            with (
                environment_of_run(full_error),
                one_line_errors(explained),
                alone_in(run_folder()),
                kept_in_folder(cfg, explained),
            ):
                return function(cfg)

        full_error = os.environ.get(FULL_ERROR)

        @functools.wraps(function)
        def main() -> None:
            end_with_sweep()
            SweepFolder.started = None
            with one_line_errors(explained):
                # Hydra then passes exceptions on instead of printing them itself.
                os.environ[FULL_ERROR] = "1"
                try:
                    if {"--help", "-h"} & set(sys.argv):
                        given = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "resume="))]
                        name_networks(conf, given)
                        print(as_started(help_text(conf, config_name, given)))
                        return
                    if not {"--hydra-help", "--version"} & set(sys.argv):
                        arguments = share_folder(sys.argv[1:])
                        arguments = prepare(arguments) if prepare else arguments
                        sys.argv[1:] = say_what_is_swept(arguments)
                    name_networks(conf, sys.argv[1:])
                    with summary(summarize):
                        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()
                finally:
                    restore(FULL_ERROR, full_error)

        return main

    return decorate


class _Screen:
    """What sys.stdout is at the time: a bar of rich takes its place, and makes room for each line."""

    def write(self, text: str) -> int:
        """Write there."""
        return sys.stdout.write(text)

    def flush(self) -> None:
        """Flush it."""
        sys.stdout.flush()


def _set_up_log(cfg: DictConfig) -> None:
    """One process says what there is to say; the others warn only, and give their number."""
    root, first = logging.getLogger(), is_first_process()
    if cfg.get("quiet") or not first:
        root.setLevel(max(root.level, logging.WARNING))
    for handler in root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(_Screen())
        if not first:
            rank = next(os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ)
            form = f"[%(asctime)s][process {rank}][%(name)s][%(levelname)s] - %(message)s"
            handler.setFormatter(logging.Formatter(form))
