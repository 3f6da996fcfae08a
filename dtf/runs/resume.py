"""Going on with a run that was cut off.

A run's folder is its identity. Training into a folder that holds checkpoints/last.ckpt goes on from there;
into one that is finished, it does nothing. `resume=DIR` on the command line stands for the overrides that DIR
was started with and `output=DIR`, so that nothing has to be typed again.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from dtf.errors import RunError
from dtf.files import leads_out
from dtf.runs.conf import CONF, is_option, quoted
from dtf.runs.folder import OVERRIDES, RESULTS, read_overrides, read_results
from dtf.runs.process import is_first_process
from dtf.text import printable, program, shortened

if TYPE_CHECKING:
    from dtf.runs.checkpoint import Checkpoint

_SHOWN = 200  # characters of an entry in a message

# Where a run happens and what it shows, not what it computes.
_FREE = (
    "output",
    "task._target_",  # where the code of task.name is, and that of data.name
    "data._target_",
    "quiet",
    "logger",
    "callbacks",
    "data.root",
    "data.num_workers",
    "trainer.profiler",
    "compile",
    "find_lr",
    "grad_checkpointing",
)
# May change between the parts of a run, with a warning: more epochs, another machine, other test views.
_CHANGEABLE = ("trainer", "data.batch_size", "data.test_views", "data.max_bad_fraction", "nonfinite")


def expand(arguments: list[str]) -> list[str]:
    """Replace `resume=DIR` by the overrides of that run.

    DIR may come from anywhere: only values of known settings are taken from it, see `_fault`. `trust=true`
    takes the other overrides too, and says which. An entry that is typed again is the user's own.

    Raises:
        ValueError: DIR holds no run, asks for more than it may, or a sweep is asked for.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError("resume=DIR is for one run; a sweep goes on when its own command is given again")
    trusted = _is_trusted(arguments)
    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    saved = folder / OVERRIDES
    if not saved.is_file():
        raise ValueError(
            f"resume={folder}: that folder holds no run (no {saved}); give the output folder of one"
        )
    entries = read_overrides(saved)
    typed = [a for a in arguments if not a.startswith(("resume=", "output=", "trust="))]
    again = {_key(a) for a in typed}
    kept, doubts = [], _strange_files(folder)
    for entry in entries:
        override = _parse(entry)
        if override is None:
            raise ValueError(f"{saved} is damaged: {shortened(entry, _SHOWN)} is no setting KEY=VALUE")
        if override.key_or_group in ("output", "resume"):
            continue
        fault = _fault(override)
        if fault is None or trusted:
            kept.append(entry)
        if fault is not None and _key(entry) not in again:
            doubts.append(f"{shortened(entry, _SHOWN)} {fault}")
    if doubts and not trusted:
        more = f"; and {len(doubts) - 10} more" if len(doubts) > 10 else ""
        raise ValueError(
            f"resume={folder} takes values of known settings only, and this run has: "
            f"{'; '.join(doubts[:10])}{more}. Type what you want of it yourself or, if you trust the folder, "
            f"repeat it in full: {program('train')} {shlex.join([f'resume={folder}', 'trust=true', *typed])}"
        )
    if doubts and is_first_process():
        print(printable(f"warning: taken on trust from {folder}: {'; '.join(doubts)}"), file=sys.stderr)
    # All overrides in one piece, as argparse wants them; what is typed now comes last and wins.
    return [*kept, f"output={quoted(folder)}", *typed]


def _is_trusted(arguments: Sequence[str]) -> bool:
    values = [a.removeprefix("trust=").lower() for a in arguments if a.startswith("trust=")]
    if any(value not in ("true", "false") for value in values):
        raise ValueError(f"trust must be true or false, got {values[-1]!r}")
    return bool(values) and values[-1] == "true"


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _strange_files(folder: Path) -> list[str]:
    """Why opening a file in this folder may change one elsewhere, or never end."""
    inside, faults = folder.resolve(), []
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in [*folders, *files]):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                faults.append(f"{path} is a link that leads out of the folder")
            elif path.exists() and not (path.is_file() or path.is_dir()):
                faults.append(f"{path} is neither a file nor a folder")
    return faults


def _parse(entry: str) -> Override | None:
    """Hydra's reading of an override; None for a text that its command line would take for something else."""
    if entry.startswith(("-", "=")):
        return None
    try:
        return OverridesParser.create().parse_override(entry)
    except HydraException:
        return None


def _fault(override: Override) -> str | None:
    """What makes an override more than the value of a known setting; None for one that is just that.

    Hydra itself refuses keys that the composed settings do not have.
    """
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE or override.package is not None:
        return "adds to the settings, or takes away from them"
    if override.is_sweep_override():
        return "is a choice of several values"
    if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", key) or key.split(".")[0] == "hydra":
        return "is not a setting of train.py"
    value = override.value()
    if (CONF / key).is_dir():
        fits = value is None or (isinstance(value, str) and is_option(key, value))
        return None if fits else "is not one of the options that are shipped"
    if key == "data.root":
        # A run cannot do without it, so it alone may lie anywhere.
        if isinstance(value, str) and "${" not in value and os.path.isdir(os.path.expanduser(value)):
            return None
        return "is no folder here: add data.root=DIR"
    return _value_fault(value)


def _value_fault(value: Any) -> str | None:
    if isinstance(value, Mapping):
        # A name with an underscore in front says what to build, and how.
        if not all(isinstance(n, str) and not n.startswith("_") and "${" not in n for n in value):
            return "is not a plain value"
        return next(filter(None, map(_value_fault, value.values())), None)
    if isinstance(value, list):
        return next(filter(None, map(_value_fault, value)), None)
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and "${" in value):
        return "is not a plain value"
    if isinstance(value, str) and leads_out(value):
        return "leads out of the folder"
    return None


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved configs, as lines "key: old -> new"; free settings are left out.

    A setting that one of them does not know is null there: settings came after runs had started.
    """
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: {shortened(str(before.get(key, 'absent')))} -> {shortened(str(after.get(key, 'absent')))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_below(key, _FREE)
    ]


def _with_task(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run; one from before there were tasks classified."""
    return {"task": {"name": "classification"}} | dict(config) if config else config


def is_free(key: str) -> bool:
    """Whether a setting says where a run happens and what it shows, not what it computes."""
    return _is_below(key, _FREE)


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results of a run that is complete with these very settings, else None.

    Raises:
        ValueError: the file of its results is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        found = read_results(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the same command tests the run again") from None
    # eval.py leaves no config: its runs are short, and repeated.
    return None if changes(_with_task(found.get("config", {})), _with_task(config)) else found


def check_same_run(checkpoint: Checkpoint, description: Mapping[str, Any]) -> list[str]:
    """Refuse to go on with another network, other data or another recipe.

    Args:
        checkpoint: where the run was left.
        description: of the run that wants to go on, `dtf.runs.checkpoint.describe`.

    Returns:
        Settings that changed and may, as lines.

    Raises:
        RunError: names what differs.
    """
    old, new = checkpoint.model, description["model"]
    if old["name"] != new["name"]:
        different = [f"model.name: {old['name']} -> {new['name']}"]
    else:
        different = [f"model.{change}" for change in changes(old["arguments"], new["arguments"])]
    changed = changes(_with_task(checkpoint.config), _with_task(description["config"]))
    different += [c for c in changed if not _is_below(c.split(":")[0], _CHANGEABLE) and c not in different]
    if different:
        shown = ", ".join(shortened(line, _SHOWN) for line in different[:8])
        raise RunError(
            f"{checkpoint.path} belongs to a run with other settings ({shown}): "
            "start in a new folder (output=DIR) or go on with the settings of that run (resume=DIR)"
        )
    return [c for c in changed if _is_below(c.split(":")[0], _CHANGEABLE)]


def _is_below(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, (list, tuple)) else value
    return flat
