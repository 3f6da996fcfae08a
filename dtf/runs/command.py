"""What every command of this project does around its work: settings from conf/, errors in one line.

`command("train")` turns a function of a config into a Hydra program. Beyond `hydra.main` it
* answers a wrong setting with one line that names the nearest right one,
* shows a user's mistake as `error: ...` with exit code 1, without a trace (HYDRA_FULL_ERROR=1 shows it),
* decides the output folder once for all processes of a run,
* lets one process at a time be at work in a folder,
* gives each run of a sweep (`-m`) a process of its own: whatever becomes of it, the others go on.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dtf.errors import RunError
from dtf.files import explaining, open_regular, replacing
from dtf.runs.help import help_text
from dtf.runs.lock import lock
from dtf.text import degrade_output, escape_logs, nearest, printable

# Read when torch is loaded, which is after this module. OpenMP's threads otherwise spin while they wait for
# each other; where the loader's workers want the same cores, a small network then took 50 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONF = (Path(__file__).parents[1] / "programs" / "conf").resolve()
"""The settings that are shipped."""
FULL_ERROR = "HYDRA_FULL_ERROR"
RUN_FOLDER = "DTF_RUN_FOLDER"
"""Environment variable by which the first process tells the ones that it starts where the run lies."""
SWEEP_FOLDER = "DTF_SWEEP_FOLDER"
"""Environment variable by which a sweep tells its runs where it lies."""
SWEEP_PROCESS = "DTF_SWEEP_PROCESS"
"""Environment variable by which a sweep tells its runs whom they must not outlive."""
FAILURE = "failure.txt"
"""In the folder of a run that failed: the reason in the first line, then the trace."""
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)
"""Signals that ask a run to save and stop, those of them that this platform has."""
STOPPED = tuple(128 + number for number in STOP_SIGNALS)
"""Exit codes of a run that has saved because a signal asked it to stop, see `dtf.lit.survival`."""
RESULTS = "results.json"
"""In the folder of a run that is finished."""
OVERRIDES = ".hydra/overrides.yaml"
"""In the folder of a run: what it was started with."""
LOCK = ".lock"
"""In the folder of a run or a search: locked by the process that is at work there."""
SECONDS_TO_WAIT = 20.0
"""For a folder's last process, which may still have to save."""

log = logging.getLogger(__name__)
Prepare = Callable[[list[str]], list[str]]
Finished = Callable[[Path, dict[str, Any]], dict[str, Any] | None]


class FolderInUse(RunError):
    """Another process is at work in the folder; nothing in it has been touched."""

    code = 75  # os.EX_TEMPFAIL, which not every platform has


def command(
    config_name: str,
    prepare: Prepare | None = None,
    finished: Finished = lambda folder, config: None,
    summarize: Callable[[Path], int] = lambda folder: 0,
) -> Callable[[Callable], Callable[[], None]]:
    """Make a Hydra program of a function.

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

        @functools.wraps(function)
        def task(cfg: DictConfig) -> Any:
            # Hydra has made the handlers by now.
            escape_logs()
            _set_up_log(cfg)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return _run_of_sweep(script, cfg, full_error, finished)
            with (
                _environment_of_run(full_error),
                one_line_errors(conf),
                alone_in(run_folder()),
                _recorded(conf, cfg),
            ):
                return function(cfg)

        full_error = os.environ.get(FULL_ERROR)

        @functools.wraps(function)
        def main() -> None:
            _end_with_sweep()
            SweepFolder.started = None
            with one_line_errors(conf):
                # Hydra then passes exceptions on instead of printing them itself.
                os.environ[FULL_ERROR] = "1"
                try:
                    if {"--help", "-h"} & set(sys.argv):
                        given = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "resume="))]
                        _name_networks(conf, given)
                        print(help_text(conf, config_name, given))
                        return
                    if not {"--hydra-help", "--version"} & set(sys.argv):
                        arguments = _share_folder(sys.argv[1:])
                        arguments = prepare(arguments) if prepare else arguments
                        sys.argv[1:] = _say_what_is_swept(arguments)
                    _name_networks(conf, sys.argv[1:])
                    with _summary(summarize):
                        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()
                finally:
                    _restore(FULL_ERROR, full_error)

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


def plain(cfg: Any) -> Any:
    """A config node as dicts, lists, numbers and strings, all references resolved."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def run_folder() -> Path:
    """The folder of the present run, the same in all of its processes."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and RUN_FOLDER in os.environ:
        return Path(os.environ[RUN_FOLDER])
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    os.environ[RUN_FOLDER] = str(folder)
    return folder


def sweep_folder() -> Path | None:
    """The folder of the sweep that the present run belongs to; None for a run of its own."""
    return Path(os.environ[SWEEP_FOLDER]) if SWEEP_FOLDER in os.environ else None


def is_first_process() -> bool:
    """Whether this is the process of a run that writes files and prints."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK")
    )


# ------------------------------------------------------------------------------------------------ errors


@contextmanager
def one_line_errors(conf: Path | None = None) -> Iterator[None]:
    """Print errors that a user can act on as `error: ...` and exit with code 1.

    What is printed meanwhile never fails for the terminal's encoding: it shows a "?" for what it lacks.

    Args:
        conf: the folder of the configuration, to look up the nearest names in.
    """
    show_trace = os.environ.get(FULL_ERROR) is not None
    degrade_output()
    try:
        yield
    except Exception as error:
        text = None if show_trace else explain(error, conf)
        if text is None:
            raise
        rank = os.environ.get("LOCAL_RANK", "0")
        prefix = "error: " if rank == "0" else f"error (process {rank}): "
        print(prefix + _laid_out(text), file=sys.stderr)
        sys.exit(error.code if isinstance(error, RunError) else 1)


def _laid_out(text: str) -> str:
    """One line, and one more for each entry of a list of faults, which are indented by two blanks."""
    lines = re.split(r"\n(?=  \S)", text)
    return "\n  ".join(printable(" ".join(line.split())) for line in lines)


def explain(error: BaseException, conf: Path | None = None) -> str | None:
    """One line for an error that a user can act on, None for one that is ours.

    A list of faults has a line for each of them, indented by two blanks.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        inner = explain(error.__cause__, conf) or f"{type(error.__cause__).__name__}: {error.__cause__}"
        place = re.search(r"full_key: (\S+)", str(error))
        return f"{place.group(1)}: {inner}" if place else inner
    if isinstance(error, MissingConfigException):
        return _explain_option(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error)
        return f"{key} has no value yet: add {key}=..."
    if isinstance(error, HydraException):
        return _explain_override(error, conf)
    if isinstance(error, OmegaConfBaseException):
        slurm = re.search(r"Environment variable '(SLURM_\w+)' not found", str(error))
        if slurm is None:
            return str(error)
        return (
            f"trainer=slurm works within a Slurm job, and {slurm[1]} is not set: start it with sbatch and "
            "srun and --ntasks-per-node (docs/distributed.md), or take trainer=ddp"
        )
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is None:
            return str(error)
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError) and _is_raised_here(error):
        return str(error)
    if isinstance(error, RuntimeError) and str(error).startswith('Could not detect "srun"'):
        return (
            "hydra/launcher=submitit_slurm needs Slurm, and there is no srun here: start the sweep on a "
            "machine of the cluster, or take hydra/launcher=submitit_local (docs/sweeps.md)"
        )
    # By name: these packages are imported late or not at all.
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if "torch.OutOfMemoryError" in kinds:
        return "out of GPU memory: lower data.batch_size (and raise trainer.accumulate_grad_batches)"
    if any(kind.endswith(".MisconfigurationException") for kind in kinds):
        return f"trainer: {error}"
    if "submitit.core.utils.UncompletedJobError" in kinds:
        return (
            f"{' '.join(str(error).split())}; the other jobs go on, python -m dtf.sweep DIR shows how far "
            "they are; when they have ended, the same command does what is missing"
        )
    if any(kind.startswith("wandb.") for kind in kinds):
        return f"Weights & Biases: {error}; without an account: logger.wandb.offline=true"
    return None


def program(name: str) -> str:
    """How "train" or "eval" is started: `python train.py` in the repository, `dtf-train` of a package."""
    installed = not (CONF.parent / "pyproject.toml").is_file()
    typed = Path(sys.argv[0]).name.startswith("dtf-")
    return f"dtf-{name}" if installed or typed else f"python {name}.py"


def _is_raised_here(error: BaseException) -> bool:
    """Whether our code raised the error (a user's fault) or a library did (then its trace matters)."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).resolve().parents[2]
    if not frames:
        return False
    last = Path(frames[-1].filename).resolve()
    if last in (root / "train.py", root / "eval.py"):
        return True
    return not {root / "dtf", root / "hydra_plugins"}.isdisjoint(last.parents)


def _explain_option(error: MissingConfigException) -> str:
    """`model=dtf_tinny`: the option does not exist."""
    missing = error.missing_cfg_file
    options = list(error.options or [])
    name = str(missing).rsplit("/", 1)
    if len(name) == 1 or not options:
        return str(error)
    group, option = name
    return f"there is no {group}={option}{nearest(option, options)} (there are: {', '.join(options)})"


def _explain_override(error: HydraException, conf: Path | None) -> str:
    """`optim.lrr=1`: the setting does not exist, or the text is no setting at all."""
    if isinstance(error, OverrideParseException):
        return f"{error.override} is no setting KEY=VALUE: {str(error).splitlines()[0]}"
    key = re.search(r"Could not (?:override|delete) '([^']+)'", str(error))
    if key is None or conf is None:
        return str(error)
    name = key.group(1).lstrip("+~").split("@")[0]
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    if cause and "is not in struct" not in cause:
        return f"{name}: {cause}"
    return f"there is no setting {name}{_nearest_setting(conf, name)} ({program(_config_name())} --help)"


def _config_name() -> str:
    """Of the program that is running: "train" of train.py and of dtf-train."""
    return Path(sys.argv[0]).stem.removeprefix("dtf-")


def _nearest_setting(conf: Path, wrong: str) -> str:
    """`; did you mean optim.lr?` for `lr`, `optim.lrr` and `optm.lr`, or an empty text."""
    known = _known_settings(conf)
    # The last part decides more than a long common beginning does.
    parent, _, last = wrong.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    by_last: dict[str, list[str]] = {}
    for key in sorted(known, key=lambda k: k.count(".")):
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    if last not in by_last:
        if near := difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.7):
            return f"; did you mean {near[0]}?"
        last = next(iter(difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)), last)
    found = by_last.get(last, [])
    # Values before the groups of the same name: optim.lr, not callbacks.lr.
    found = [k for k in found if not any(other.startswith(k + ".") for other in known)] or found
    return f"; did you mean {' or '.join(found[:3])}?" if found else nearest(wrong, siblings or known)


def _known_settings(conf: Path) -> list[str]:
    """All settings under the groups chosen on the command line: `optim.lr`, `model`, ..."""
    config_name = _config_name()
    groups = [p.name for p in conf.iterdir() if p.is_dir()]
    choices = [a for a in sys.argv[1:] if a.split("=")[0].lstrip("+") in groups and "," not in a]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            cfg = compose(config_name, overrides=choices)
        except HydraException:
            # A chosen option is wrong as well; the defaults still hold most names.
            cfg = compose(config_name)

    def keys(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield prefix + str(key)
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                child = node[key]
                if isinstance(child, DictConfig):
                    yield from keys(child, f"{prefix}{key}.")

    return list(dict.fromkeys([*keys(cfg, ""), *groups]))


def is_option(group: str, name: str) -> bool:
    """Whether GROUP=NAME is shipped: as a file, or as a registered network of which such a file knows."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    return name in files or (group == "model" and _network(CONF, name) is not None)


def _name_networks(conf: Path, arguments: Iterable[str]) -> None:
    """Let `model=NAME_resnet50` stand for `model=NAME_resnet model.depth=50`: by the name in its file.

    Hydra is told of an option for each network that the arguments name and that has no file of its own.
    """
    asked = {word for a in arguments if a.startswith("model=") for word in re.findall(r"\w+", a[6:])}
    for word in asked:
        node = _network(conf, word)
        if node is not None and not (conf / "model" / f"{word}.yaml").is_file():
            ConfigStore.instance().store(group="model", name=word, node=node)


def _network(conf: Path, name: str) -> dict[str, Any] | None:
    """The settings that stand for a network's registered name; None for one that no file knows."""
    for path in (conf / "model").glob("*.yaml"):
        found = re.search(r"^name: (\w+)\$\{\.(\w+)\}", path.read_text("utf-8"), flags=re.M)
        if found and re.fullmatch(re.escape(found[1]) + r"\w+", name):
            size = name.removeprefix(found[1])
            return {"defaults": [path.stem, "_self_"], found[2]: int(size) if size.isdecimal() else size}
    return None


# ------------------------------------------------------------------------------------------------ sweeps


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


def failure(folder: Path) -> str | None:
    """Why the run in `folder` failed, in one line; None where it did not."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    with open_regular(path) as file:
        return file.readline(1 << 16).decode("utf-8", "replace").rstrip("\n")


def begin() -> None:
    """Make its folder that of the present run: called when all checks have passed, in each process.

    Until then nothing in the folder of an earlier run is changed, so that a start that is refused costs it
    nothing: neither its settings, by which it is resumed, nor its log, nor what it says of a failure.
    """
    while _to_begin:
        _to_begin.pop()()


_to_begin: list[Callable[[], None]] = []


@contextmanager
def _recorded(conf: Path, cfg: DictConfig) -> Iterator[None]:
    """Leave settings, log and the reason of a failure in the run's folder, from `begin` on."""
    folder, settings, held = run_folder(), _settings(cfg), _hold_log()
    has_begun = False

    def write() -> None:
        nonlocal has_begun
        has_begun = True
        if is_first_process():
            (folder / FAILURE).unlink(missing_ok=True)
            _write_settings(folder, settings)
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
            text = explain(error, conf) or f"{type(error).__name__}: {error}"
            _record(folder, text, traceback.format_exc())
        raise
    finally:
        _to_begin.clear()
        _release_log(held, write=False)


def _settings(cfg: DictConfig) -> dict[str, str]:
    """What Hydra keeps of a run, by file; the overrides come last: by them a run is resumed."""
    hydra_cfg: Any = HydraConfig.instance().cfg
    nodes = {"config.yaml": cfg, "hydra.yaml": hydra_cfg, "overrides.yaml": hydra_cfg.hydra.overrides.task}
    return {f".hydra/{name}": OmegaConf.to_yaml(node) for name, node in nodes.items()}


def _write_settings(folder: Path, settings: Mapping[str, str]) -> None:
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


def _record(folder: Path, reason: str, trace: str) -> None:
    # A full disk may be what is wrong; the error itself is shown in any case.
    with suppress(OSError, RunError), replacing(folder / FAILURE) as file:
        file.write(f"{printable(' '.join(reason.split()))}\n\n{trace}")


def _run_of_sweep(
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
        _write_settings(folder, _settings(cfg))
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
        _record(folder, f"its process {ended}", "")
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


def _end_with_sweep() -> None:
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
def _summary(summarize: Callable[[Path], int]) -> Iterator[None]:
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


def _say_what_is_swept(arguments: list[str]) -> list[str]:
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


def with_override(arguments: list[str], override: str) -> list[str]:
    """Add an override behind the others: argparse wants them in one piece, whatever flag comes last."""
    places = [i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")]
    end = 1 + places[-1] if places else len(arguments)
    return [*arguments[:end], override, *arguments[end:]]


def quoted(text: object) -> str:
    """A text as Hydra's command line takes it."""
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# ------------------------------------------------------------------------------- folders and processes


def _run_name(overrides: Sequence[str] | None = None, fixed: Sequence[str] = ()) -> str:
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


def _share_folder(arguments: list[str]) -> list[str]:
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
def _environment_of_run(full_error: str | None) -> Iterator[None]:
    """What a run leaves in this process ends with it: another one may follow."""
    environment = dict(os.environ)
    _restore(FULL_ERROR, full_error)
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


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


# When this module is loaded: the jobs of a launcher compose their settings in processes of their own.
OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
