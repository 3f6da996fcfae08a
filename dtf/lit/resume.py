"""Going on with a run that was cut off.

A run's folder is its identity. Training into a folder that holds checkpoints/last.ckpt goes on from there;
into one that is finished, it does nothing. `resume=DIR` on the command line stands for the overrides that DIR
was started with and `output=DIR`, so that nothing has to be typed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dtf.lit.command import RESULTS, RunError, quoted

if TYPE_CHECKING:
    from dtf.lit.checkpoint import Checkpoint

# Where a run happens and what it shows, not what it computes.
_FREE = (
    "output",
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

    Raises:
        ValueError: DIR holds no run, or a sweep is asked for.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError("resume=DIR is for one run; a sweep goes on when its own command is given again")
    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise ValueError(
            f"resume={folder}: that folder holds no run (no {saved}); give the output folder of one"
        )
    overrides = [str(o) for o in OmegaConf.load(saved) if not str(o).startswith("output=")]
    others = [a for a in arguments if not a.startswith(("resume=", "output="))]
    # All overrides in one piece, as argparse wants them; what is typed now comes last and wins.
    return [*overrides, f"output={quoted(folder)}", *others]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved configs, as lines "key: old -> new"; free settings are left out."""
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent") and not _is_below(key, _FREE)
    ]


def is_free(key: str) -> bool:
    """Whether a setting says where a run happens and what it shows, not what it computes."""
    return _is_below(key, _FREE)


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results of a run that is complete with these very settings, else None."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    # eval.py leaves no config: its runs are short, and repeated.
    return None if changes(found.get("config", {}), config) else found


def check_same_run(checkpoint: Checkpoint, description: Mapping[str, Any]) -> list[str]:
    """Refuse to go on with another network, other data or another recipe.

    Args:
        checkpoint: where the run was left.
        description: of the run that wants to go on, `dtf.lit.checkpoint.describe`.

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
    changed = changes(checkpoint.config, description["config"])
    different += [c for c in changed if not _is_below(c.split(":")[0], _CHANGEABLE) and c not in different]
    if different:
        raise RunError(
            f"{checkpoint.path} belongs to a run with other settings ({', '.join(different[:8])}): "
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
