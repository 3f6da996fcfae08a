"""The data settings that a checkpoint carries, brought into a config without trusting the file.

A checkpoint may come from anywhere. Of its settings only plain values are taken, and only into settings that
the config already has: never a class to build (`_target_`), never a reference (`${...}`). A data folder is
taken only where it exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from dtf.runs.command import CONF, plain, with_override

CLIP_KEYS = ("clip_length", "frame_stride", "crop_px", "short_side_px", "sampling", "mean", "std")
"""What decides how a network sees a video: right for every data set that it is evaluated on."""

_LOCAL_KEYS = (
    *("batch_size", "repeats", "num_workers", "seed", "test_views"),
    *("max_bad_fraction", "max_read_seconds", "decoder"),
)


def choose_data(arguments: list[str], read: Callable[[Path], Mapping[str, Any]]) -> list[str]:
    """Add `data=NAME` of the checkpoint where the command line names no data set.

    Args:
        arguments: the command line.
        read: the data settings that a file says, `dtf.apply.graphs.read_data`.

    Raises:
        ValueError: no checkpoint is given, it cannot be read, or its data set is unknown here.
    """
    settings = [a for a in arguments if not a.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(settings)
    paths = [o for o in overrides if o.key_or_group == "checkpoint"]
    if not paths:
        raise ValueError(
            "no checkpoint: add checkpoint=PATH, a file OUTPUT/checkpoints/best.ckpt of train.py"
        )
    if any(o.key_or_group == "data" for o in overrides):
        return arguments
    value = next(iter(paths[-1].sweep_string_iterator())) if paths[-1].is_sweep_override() else None
    path = value.strip("'\"") if value is not None else str(paths[-1].value())
    name = read(Path(path)).get("name")
    known = {p.stem for p in (CONF / "data").glob("*.yaml")}
    if name not in known:
        raise ValueError(
            f"{path} was trained on data set {name!r}, unknown here: add data=... ({_list(known)})"
        )
    return with_override(arguments, f"data={name}")


def apply_stored(cfg: DictConfig, stored: Mapping[str, Any], overrides: Collection[str]) -> list[str]:
    """Write a checkpoint's data settings into the `data` config, except those given on the command line.

    Args:
        cfg: the data config; changed in place.
        stored: the checkpoint's data settings. For another data set only `CLIP_KEYS` are taken.
        overrides: the command line's overrides, `data.crop_px=112` and the like.

    Returns:
        The settings whose values changed, "key=value".

    Raises:
        ValueError: the file holds something else than plain values.
    """
    given = {o.split("=", 1)[0].lstrip("+~") for o in overrides}
    changed: list[str] = []
    same_set = stored.get("name") == cfg.get("name")

    def merge(node: DictConfig, values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            path = f"{prefix}.{key}"
            if not isinstance(key, str) or key.startswith("_") or key not in node or path in given:
                continue
            child = None if OmegaConf.is_missing(node, key) else node[key]
            if isinstance(child, DictConfig) and isinstance(value, Mapping):
                merge(child, value, path)
            elif isinstance(value, Mapping) == isinstance(child, DictConfig) or child is None:
                _check_plain(path, value)
                before = plain(OmegaConf.create({key: child}))[key]
                if before != value:
                    changed.append(f"{path}={value}")
                node[key] = value

    wanted = {
        key: value
        for key, value in stored.items()
        if key in CLIP_KEYS or (same_set and key not in _LOCAL_KEYS and key != "root")
    }
    root = stored.get("root")
    if same_set and isinstance(root, str) and os.path.isdir(root):
        wanted["root"] = root
    with open_dict(cfg):
        merge(cfg, wanted, "data")
    return changed


def _check_plain(path: str, value: Any) -> None:
    """Refuse references and nested classes in what a file says."""
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"the checkpoint's {path} is not a plain value: {value!r}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise ValueError(f"the checkpoint's {path} is not a mapping of plain values: {key!r}")
            _check_plain(f"{path}.{key}", item)
    if isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, Mapping):
                raise ValueError(f"the checkpoint's {path} is not a list of plain values")
            _check_plain(path, item)


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
