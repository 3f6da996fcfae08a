"""The data settings that a checkpoint carries, brought into a config without trusting the file.

A checkpoint may come from anywhere: `dtf.runs.description` says what is taken of it. A data folder is taken
only where it exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dtf.data.clip_view import CLIP_KEYS
from dtf.runs.composing import plain
from dtf.runs.conf import CONF, is_option, with_override
from dtf.runs.description import MADE_KEYS


def choose_data(arguments: list[str], read: Callable[[Path], Mapping[str, Any]]) -> list[str]:
    """Add `data=NAME` of the checkpoint where the command line names no data set.

    Args:
        arguments: the command line.
        read: the data settings that a file says, `dtf.apply.graphs.read_data`.

    Raises:
        ValueError: no checkpoint is given, it cannot be read, or its data set is unknown here.
    """
    path, given = _checkpoint(arguments)
    if "data" in given:
        return arguments
    name = read(path).get("name")
    known = {path.stem for path in (CONF / "data").glob("*.yaml")}
    is_own = _has_own_settings(arguments, given) and isinstance(name, str) and re.fullmatch(r"[\w-]+", name)
    if name not in known and not is_own:
        raise ValueError(
            f"{path} was trained on data set {name!r}, unknown here: add data=... ({_list(known)}), or "
            "--config-dir=DIR with DIR/data/NAME.yaml"
        )
    return with_override(arguments, f"data={name}")


def choose_task(arguments: list[str], read: Callable[[Path], str | None]) -> list[str]:
    """Add `task=NAME` of the checkpoint where the command line names no task and the file does.

    Args:
        arguments: the command line.
        read: the task that a file says, `dtf.apply.graphs.read_task`.

    Raises:
        ValueError: no checkpoint is given, it cannot be read, or its task is unknown here.
    """
    path, given = _checkpoint(arguments)
    name = None if "task" in given else read(path)
    if name is None:
        return arguments
    if not _has_own_settings(arguments, given) and not is_option("task", name):
        known = {path.stem for path in (CONF / "task").glob("*.yaml")}
        raise ValueError(
            f"{path} was trained for task {name!r}, unknown here: add task=... ({_list(known)}), or "
            "hydra.searchpath=[file://DIR] with DIR/task/NAME.yaml"
        )
    return with_override(arguments, f"task={name}")


def _has_own_settings(arguments: list[str], given: set[str]) -> bool:
    """Whether a command line names folders of settings of one's own: then Hydra says what they lack."""
    return "hydra.searchpath" in given or any(a.startswith(("--config-dir", "-cd")) for a in arguments)


def _checkpoint(arguments: list[str]) -> tuple[Path, set[str]]:
    """The checkpoint that a command line names, the first one of several, and all keys of its overrides.

    Raises:
        ValueError: there is none.
    """
    # Without "=" they are values of flags, `--config-dir DIR`; Hydra says what is wrong with others.
    settings = [a for a in arguments if "=" in a and not a.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(settings)
    paths = [o for o in overrides if o.key_or_group == "checkpoint"]
    if not paths:
        raise ValueError(
            "no checkpoint: add checkpoint=PATH, a file OUTPUT/checkpoints/best.ckpt of train.py"
        )
    value = next(iter(paths[-1].sweep_string_iterator())) if paths[-1].is_sweep_override() else None
    path = value.strip("'\"") if value is not None else str(paths[-1].value())
    return Path(path), {o.key_or_group for o in overrides}


def apply_data(cfg: DictConfig, stored: Mapping[str, Any], overrides: Collection[str]) -> list[str]:
    """Write a checkpoint's data settings into the `data` config, except those given on the command line.

    Args:
        cfg: the data config; changed in place.
        stored: the checkpoint's data settings, `dtf.runs.description.taken_data`. For another data set only
            `CLIP_KEYS` are taken, for the same one its splits, its class names where this config has none,
            and its folder where that exists, never to be made.
        overrides: the command line's overrides, `data.crop_px=112` and the like.

    Returns:
        The settings whose values changed, "key=value".
    """
    given = {key for o in overrides if (key := o.split("=", 1)[0].lstrip("+~")).startswith("data.")}
    wanted = {key: stored[key] for key in CLIP_KEYS if key in stored and key != "sampling"}
    for stage, options in (stored.get("sampling") or {}).items():
        wanted |= {f"sampling.{stage}.{name}": value for name, value in options.items()}
    if stored.get("name") == cfg.get("name"):
        wanted |= {f"splits.{stage}": split for stage, split in stored.get("splits", {}).items()}
        if cfg.get("class_names") is None and "class_names" in stored:
            wanted["class_names"] = stored["class_names"]
        root = stored.get("root", "")
        if os.path.isdir(root):
            wanted["root"] = root
        if "data.root" in given or "root" not in wanted:
            root = cfg.get("root") or ""
        if os.path.isdir(root):
            wanted |= {key: stored[key] for key in MADE_KEYS if key in stored}
    changed = []
    for key, value in wanted.items():
        if any(f"data.{key}.".startswith(f"{path}.") for path in given) or not _has(cfg, key):
            continue
        before = None if OmegaConf.is_missing(cfg, key) else _select(cfg, key)
        OmegaConf.update(cfg, key, value, merge=False)
        if _select(cfg, key) != before:
            changed.append(f"data.{key}={value}")
    return changed


def _select(cfg: DictConfig, key: str) -> Any:
    found = OmegaConf.select(cfg, key)
    return plain(found) if OmegaConf.is_config(found) else found


def _has(cfg: DictConfig, key: str) -> bool:
    """Whether the config has a setting, be it without a value yet (`???`)."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and name in node.keys()  # noqa: SIM118  # `in` misses a ???


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
