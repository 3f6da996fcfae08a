"""Sweeps (`-m`): each run in a process of its own, in a folder named by what changes.

Whatever becomes of a run, the others go on.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from dtf.errors import RunError
from dtf.runs.composing import plain
from dtf.runs.conf import quoted, with_override
from dtf.runs.folder import FAILURE, OVERRIDES, RESULTS, SWEEP_FOLDER, FolderInUse, failure
from dtf.runs.process import FULL_ERROR, RUN_FOLDER, STOP_SIGNALS, STOPPED, is_first_process
from dtf.runs.writing import settings_of, write_failure, write_settings

SWEEP_PROCESS = "DTF_SWEEP_PROCESS"
"""Environment variable by which a sweep tells its runs whom they must not outlive."""

log = logging.getLogger(__name__)
Finished = Callable[[Path, dict[str, Any]], dict[str, Any] | None]


class SweepFolder(Callback):
    """Hydra callback by which `command` learns where the sweep lies, and writes into a run's folder itself.

    Attributes:
        started: the folder of this process's sweep, None before there is one.
    """

    started: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the folder."""
        SweepFolder.started = Path(config.hydra.sweep.dir).resolve()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let Hydra write nothing there: it does not know yet whether the folder may be this run's."""
        with read_write(config), open_dict(config):
            config.hydra.output_subdir = None
            for handler in (config.hydra.job_logging.get("handlers") or {}).values():
                if "filename" in handler:
                    handler.delay = True


def run_of_sweep(
    script: Path, cfg: DictConfig, full_error: str | None, finished: Finished
) -> dict[str, float] | None:
    """One run of a sweep, in a process of its own: no crash, kill or leak of it reaches the others.

    Returns:
        Its metrics; None where it failed, which is told by its folder.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir).resolve()
    if is_first_process():
        (folder / FAILURE).unlink(missing_ok=True)
    if (folder / RESULTS).is_file():
        config = plain(cfg)
        # Where they are damaged, the run itself says so.
        with suppress(ValueError):
            done = finished(folder, config)
            if done is not None and not config.get("find_lr"):
                log.info("%s is finished: nothing to do", folder.name)
                return done["metrics"]
    if is_first_process() and not (folder / OVERRIDES).exists():
        # A run that does not come to its beginning is one of the sweep all the same.
        write_settings(folder, settings_of(cfg))
    environment = {k: v for k, v in os.environ.items() if k not in (RUN_FOLDER, FULL_ERROR)}
    if full_error is not None:
        environment[FULL_ERROR] = full_error
    environment |= {SWEEP_FOLDER: str(folder.parent), SWEEP_PROCESS: str(os.getpid())}
    arguments = [
        sys.executable,
        str(script),
        *_arguments_of_run(script, hydra_config),
        f"output={quoted(folder)}",
    ]
    code = _wait(subprocess.Popen(arguments, env=environment))
    if code == FolderInUse.code:
        log.warning("%s is left to the process that is at work there", folder.name)
        return None
    if code in STOPPED:
        # Not this run alone is to stop. It has saved and said how to go on.
        sys.exit(code)
    if code == 0:
        done = finished(folder, plain(cfg))
        return {} if done is None else done["metrics"]
    if failure(folder) is None:
        ended = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        write_failure(folder, f"its process {ended}", "")
    log.error("%s failed: %s", folder.name, failure(folder))
    return None


def _arguments_of_run(script: Path, hydra_config: HydraConf) -> list[str]:
    """The command line of a sweep's run, all but its folder: where settings are looked up, and its own."""
    name, found = hydra_config.job.config_name, []
    if name is not None and name != script.stem:
        found += ["--config-name", name]
    for source in hydra_config.runtime.config_sources:
        if source.provider == "command-line":
            found += ["--config-dir", source.path]
    of_runs = ("hydra.searchpath", "hydra.verbose", "hydra.job_logging", "hydra/job_logging")
    found += [o for o in hydra_config.overrides.hydra if o.lstrip("+~").startswith(of_runs)]
    return found + [o for o in hydra_config.overrides.task if not o.startswith("output=")]


def _wait(process: subprocess.Popen) -> int:
    """Wait for a run. What ends the sweep ends the run first, which saves where it is."""
    received = signal.SIGTERM

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(signum)
        raise SystemExit(128 + signum)

    handled = []
    if threading.current_thread() is threading.main_thread():
        # Where a launcher has handlers of its own, they end this wait if need be.
        handled = [s for s in STOP_SIGNALS if s != signal.SIGINT and signal.getsignal(s) is signal.SIG_DFL]
    for signum in handled:
        signal.signal(signum, end)
    try:
        return process.wait()
    except BaseException:
        # Ctrl-C and Slurm reach both processes; a second signal does no harm.
        process.send_signal(received)
        process.wait()
        raise
    finally:
        for signum in handled:
            signal.signal(signum, signal.SIG_DFL)


def end_with_sweep() -> None:
    """End this run when its sweep is killed: two processes must never train in one folder."""
    sweep = int(os.environ.pop(SWEEP_PROCESS, "0"))

    def watch() -> None:
        while os.getppid() == sweep:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    if sweep:
        if hasattr(signal, "SIGUSR2"):
            # Slurm sends it to all processes of a job; submitit takes it and ends this one in good order.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        threading.Thread(target=watch, name="sweep-watch", daemon=True).start()


@contextmanager
def summary(summarize: Callable[[Path], int]) -> Iterator[None]:
    """Close a sweep with its summary, however it ends; exit code 1 where a run failed."""
    try:
        yield
    except KeyboardInterrupt:
        if SweepFolder.started is None:
            raise
        raise RunError("interrupted; the same command goes on where the sweep was left") from None
    finally:
        failed = 0
        if SweepFolder.started is not None and is_first_process():
            failed = summarize(SweepFolder.started)
    if failed:
        raise RunError(f"{failed} run(s) of the sweep failed; the same command tries them again")


def say_what_is_swept(arguments: list[str]) -> list[str]:
    """Tell the jobs of a sweep, which may run elsewhere, which settings are the same in all of them.

    And tell Hydra to write none into their folders.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    texts = [a for a in arguments if not a.startswith("-") and "=" in a]
    overrides = OverridesParser.create().parse_overrides(texts)
    fixed = ",".join(quoted(o.key_or_group) for o in overrides if not o.is_sweep_override())
    # Each run writes its settings itself.
    arguments = with_override(arguments, "hydra.output_subdir=null")
    return with_override(arguments, f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]")


def run_name(overrides: Sequence[str] | None = None, fixed: Sequence[str] = ()) -> str:
    """A folder name from what changes in a sweep: `model=NAME, seed=1` -> `model-NAME__seed-1`.

    Args:
        overrides: of a run.
        fixed: keys that are the same in all runs.
    """
    kept = [o for o in overrides or [] if o.split("=")[0].lstrip("+~") not in fixed]
    parts = [re.sub(r"[^A-Za-z0-9_.+-]+", "-", o.lstrip("+~").replace("=", "-", 1)) for o in kept]
    text = "__".join(parts).strip(".") or "default"
    # Other values are not told apart by what is left of them: a/b and a-b, [1,2] and [12].
    if all(re.fullmatch(r"[^=]*=[A-Za-z0-9_.+-]*", o) for o in kept) and len(text) <= 120:
        return text
    return f"{text[:110].rstrip('-')}-{zlib.crc32('|'.join(kept).encode()):08x}"


# When this module is loaded: the jobs of a launcher compose their settings in processes of their own.
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
