"""What is taken of the description in a file of weights or a graph, whatever its kind.

Such a file may come from anywhere. Everything is taken by name and by type; what a name does not stand for
here (batch sizes, augmentation, classes to build, ...) has no way in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from dtf.data.clip_view import CLIP_KEYS, STAGES
from dtf.data.transforms import Interpolation
from dtf.files import leads_out
from dtf.text import shortened
from dtf.values import is_integer, is_number

MADE_KEYS = ("clips_per_class", "generation_seed")
"""What generated data were made with: compared with a folder that exists, never made by."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": nn.Softmax(dim=1),
    "sigmoid": nn.Sigmoid(),
    "none": nn.Identity(),
}
"""How outputs (B, C) of a network become scores: each task names its way, `dtf.lit.tasks.task.Task`.

All but "none", whose scores are the outputs, give scores in 0..1.
"""
_MOST = 8192  # frames, pixels, frames per second, ...
_MOST_CLIP_BYTES = 1 << 28  # of a clip in uint8: 64 frames of 1024 x 1024 are less


def taken_names(path: Path, names: Any, num_classes: Any) -> list[str]:
    """The names of the classes that a file of weights gives.

    Args:
        path: the file, for messages.
        names: what it says, anything.
        num_classes: of its network.

    Raises:
        ValueError: they are no list of so many texts.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: damaged description: class_names must be a list of texts")
    if len(names) != num_classes:
        raise ValueError(
            f"{path}: damaged description: it names {len(names)} classes, its network has {num_classes}"
        )
    return names


def taken_task(path: Path, task: Any) -> str | None:
    """The name of the task that a file of weights gives; None where it does not say.

    Args:
        path: the file, for messages.
        task: what it says, anything.

    Raises:
        ValueError: it is no name.
    """
    if task is not None and not (isinstance(task, str) and re.fullmatch(r"[A-Za-z]\w{0,99}", task, re.ASCII)):
        raise _damaged(path, "task", task)
    return task


def taken_activation(path: Path, name: Any) -> str:
    """The name in `ACTIVATIONS` that a file of weights gives; "softmax" where it does not say.

    Files without it are older than that, when all that could be applied was classification.

    Args:
        path: the file, for messages.
        name: what it says, anything.

    Raises:
        ValueError: it is none of them.
    """
    if name is None:
        return "softmax"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"{path}: its outputs become scores by {shortened(repr(name))}, unknown here (known: "
            f"{', '.join(ACTIVATIONS)}): was it written by a newer version?"
        )
    return name


def taken_data(path: Path, data: Any, names: list[str]) -> dict[str, Any]:
    """What is taken of the data settings in a file of weights, which may come from anywhere.

    By name: the clip view (`CLIP_KEYS`) and "test_views"; which data set it was, "name", "root", "splits" and
    `MADE_KEYS`; "class_names", where the run had named them itself: then `names`, never a file of them.

    Args:
        path: the file, for messages.
        data: what it says, anything.
        names: its classes.

    Raises:
        ValueError: one of them has another type, is out of range, or leads out of the data folder; clips are
            too large for memory.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: damaged description: data must be settings, got {str(data)[:80]}")
    keys = (*CLIP_KEYS, "test_views", "name", "root", "splits", *MADE_KEYS)
    # Weights from before there was a choice do not say how frames are resized.
    taken = {"interpolation": None} | {key: data[key] for key in keys if key in data}
    for key, value in taken.items():
        if not _is_right(key, value):
            raise _damaged(path, f"data.{key}", value)
    side = max(taken.get("crop_px", 1), taken.get("short_side_px") or 1)
    if 3 * taken.get("clip_length", 1) * side**2 > _MOST_CLIP_BYTES:
        raise ValueError(
            f"{path}: damaged description: clips of {taken.get('clip_length', 1)} frames of {side} x {side} "
            f"pixels have more than {_MOST_CLIP_BYTES >> 20} MiB"
        )
    return taken if data.get("class_names") is None else taken | {"class_names": names}


def _is_right(key: str, value: Any) -> bool:
    """Whether a data setting has the type and the range of its name."""
    if key in ("clip_length", "frame_stride", "crop_px") or (key == "short_side_px" and value is not None):
        return _is_count(value) and 1 <= value <= _MOST
    if key == "interpolation":
        return value in (None, *get_args(Interpolation))
    if key in ("mean", "std"):
        return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_small_number, value))
    if key == "splits":
        return isinstance(value, Mapping) and all(
            stage in STAGES and (split is None or (_is_text(split) and not leads_out(split)))
            for stage, split in value.items()
        )
    if key == "sampling":
        return isinstance(value, Mapping | None) and all(
            stage in STAGES and isinstance(settings, Mapping) and all(map(_is_option, settings.items()))
            for stage, settings in (value or {}).items()
        )
    if key == "clips_per_class":
        return isinstance(value, Mapping) and all(
            stage in STAGES and _is_count(count) for stage, count in value.items()
        )
    if key == "generation_seed":
        return _is_count(value)
    if key == "test_views":
        return _is_text(value) and re.fullmatch(r"[0-9]{1,3}x[13]", value) is not None
    return value is None if key == "short_side_px" else _is_text(value)


def _is_option(item: tuple[Any, Any]) -> bool:
    name, value = item
    fits = value is None or isinstance(value, bool) or _is_small_number(value) or _is_text(value)
    return isinstance(name, str) and not name.startswith("_") and fits


def _is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _is_small_number(value: Any) -> bool:
    return is_number(value) and abs(value) < _MOST


def _is_text(value: Any) -> bool:
    # "${" would be a reference to other settings, to variables of the environment, ...
    return isinstance(value, str) and "${" not in value


def _damaged(path: Path, key: str, value: Any) -> ValueError:
    # The values were counted when the file was read: their text has an end.
    return ValueError(f"{path}: damaged description: {key} cannot be {shortened(repr(value))}")
