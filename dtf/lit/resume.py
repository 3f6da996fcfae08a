"""Going on with a run that was cut off.

A run's folder is its identity. Training into a folder that holds checkpoints/last.ckpt goes on from there; into one
that is finished, it does nothing. `resume=DIR` on the command line stands for the overrides that DIR was started
with and `output=DIR`, so that nothing has to be typed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtf.lit.command import RunError

RESULTS = "results.json"
# Where a run happens, not what it computes: these may change between its parts.
_FREE = ("output", "logger", "callbacks", "data.root", "data.num_workers", "trainer.profiler", "compile")


def expand(arguments: list[str]) -> list[str]:
    """Replace `resume=DIR` by the overrides of that run.

    Raises:
        ValueError: DIR holds no run.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return arguments
    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise ValueError(
            f"resume={folder}: that folder holds no run (no {saved}); give the output folder of one"
        )
    overrides = [str(o) for o in OmegaConf.load(saved) if not str(o).startswith("output=")]
    others = [a for a in arguments if not a.startswith(("resume=", "output="))]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*overrides, *others, f"output='{quoted}'"]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved configs, as lines "key: old -> new"; free settings are left out."""
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent")
        and not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results of a run that is complete with these very settings, else None."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return None if changes(found["config"], config) else found


def check_same_network(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with another network.

    Args:
        old, new: {"name": ..., "arguments": {...}}.
        path: the checkpoint.

    Raises:
        RunError: names what differs.
    """
    differences = [] if old["name"] == new["name"] else [f"name {old['name']} -> {new['name']}"]
    if not differences:
        before, after = _flat(old["arguments"]), _flat(new["arguments"])
        differences = [
            f"{k} {before.get(k)} -> {after.get(k)}"
            for k in sorted(before.keys() | after.keys())
            if before.get(k) != after.get(k)
        ]
    if differences:
        raise RunError(
            f"{path} holds another network ({', '.join(differences)}): "
            "start in a new folder (output=DIR) or go on with the settings of that run (resume=DIR)"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, (list, tuple)) else value
    return flat
