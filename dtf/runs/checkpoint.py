"""Checkpoints: written whole or not at all, holding plain data only, read without running any code in them.

A checkpoint is Lightning's dictionary (weights in `state_dict`, prefixed "network.") plus a key `dtf`:

    {"format": 1,
     "model": {"name": ..., "arguments": {...}},   create_model(name, **arguments) rebuilds the network
     "class_names": [...],
     "activation": "softmax",                      how outputs become scores; older files do not have it
     "data": {...},                                the run's data config, resolved; `taken_data` of it is read
     "config": {...}}                              the run's whole config, resolved
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtf.models import VideoNetwork
from dtf.models.weights.archive import UnsafeArchive, load_archive
from dtf.models.weights.rebuild import plain_data, rebuild
from dtf.runs.description import taken_activation, taken_data, taken_names

FORMAT = 1
PREFIX = "network."


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says, see the head of this module.

    Attributes:
        path: where it was read from.
        state_dict: weights of the network, names as in the network.
        model: {"name": str, "arguments": dict}.
        class_names: one name per class.
        data: what is taken of the run's data config, see `dtf.runs.description.taken_data`.
        config: whole config of the run.
        activation: how outputs become scores, a name in `dtf.runs.description.ACTIVATIONS`.
        epoch: epochs finished when it was written, their validation included.
        step: optimiser steps taken.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    model: dict[str, Any]
    class_names: list[str]
    data: dict[str, Any]
    config: dict[str, Any]
    activation: str
    epoch: int
    step: int

    def build_network(self) -> VideoNetwork:
        """The trained network, in evaluation mode.

        Raises:
            ValueError: the weights do not belong to the network that the file names.
        """
        shapes = {name: tensor.shape for name, tensor in self.state_dict.items()}
        network = rebuild(self.path, self.model["name"], self.model["arguments"], shapes)
        taken_names(self.path, self.class_names, network.arguments["num_classes"])
        network.load_state_dict(self.state_dict)
        return network.eval()


def describe(
    network: VideoNetwork,
    class_names: list[str],
    data: Mapping[str, Any],
    config: Mapping[str, Any],
    activation: str = "softmax",
) -> dict[str, Any]:
    """The `dtf` entry of a checkpoint, from a network with attributes `name` and `arguments`."""
    return {
        "format": FORMAT,
        "model": {"name": network.name, "arguments": network.arguments},
        "class_names": list(class_names),
        "activation": activation,
        "data": dict(data),
        "config": dict(config),
    }


def load_checkpoint(path: str | os.PathLike[str], weights: bool = True) -> Checkpoint:
    """Read a checkpoint of this framework. Never runs code from the file.

    Args:
        path: a .ckpt file that train.py wrote.
        weights: whether to read the weights (their bytes stay on disk otherwise).

    Raises:
        ValueError: no such file, not a checkpoint, damaged, or of another framework.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(_missing(path))
    content = read_content(path, mmap=not weights)
    about = content.get("dtf") if isinstance(content, dict) else None
    if not isinstance(about, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(
            f"{path} is a checkpoint of something else: it does not say which dtf network it holds"
        )
    version = about.get("format")
    if not isinstance(version, int) or version != FORMAT:
        found = version if isinstance(version, int) else f"of type {type(version).__name__}"
        raise ValueError(f"{path} has checkpoint format {found}; this version reads {FORMAT}")
    try:
        _check(plain_data(about), content["state_dict"])
        epoch, step = _epochs(content), int(content.get("global_step", 0))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: damaged description: {error}") from None
    state = {k[len(PREFIX) :]: v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    if sum(tensor.nbytes for tensor in state.values()) > path.stat().st_size:
        raise ValueError(f"{path}: its weights are larger than the file: several of them share their numbers")
    return Checkpoint(
        path=path,
        state_dict=state,
        model=about["model"],
        class_names=about["class_names"],
        data=taken_data(path, about["data"], about["class_names"]),
        config=about["config"],
        activation=taken_activation(path, about.get("activation")),
        epoch=epoch,
        step=step,
    )


def read_content(path: Path, mmap: bool = False) -> Any:
    try:
        return load_archive(path, mmap)
    except UnsafeArchive as error:
        raise ValueError(
            f"{path} is no checkpoint of train.py: {error}; files that could run code or fill the memory are "
            "not read"
        ) from None
    except ValueError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} is no checkpoint, or a damaged one ({size} bytes): {error}") from None


def _check(about: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    """ValueError where the `dtf` entry or the weights are not laid out as at the head of this module."""
    for key, kind in {"model": dict, "class_names": list, "data": dict, "config": dict}.items():
        if not isinstance(about.get(key), kind):
            raise ValueError(f"{key} must be a {kind.__name__}, got {type(about.get(key)).__name__}")
    model = about["model"]
    if not isinstance(model.get("name"), str) or not isinstance(model.get("arguments"), dict):
        raise ValueError("model must have a name and arguments")
    if not all(isinstance(name, str) for name in about["class_names"]):
        raise ValueError("class_names must be a list of texts")
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise ValueError("state_dict must be tensors by name")


def _epochs(content: dict[str, Any]) -> int:
    # Lightning's "epoch" is the number of the epoch that it was in, whether at its end or within it.
    progress = content.get("loops", {}).get("fit_loop", {}).get("epoch_progress")
    return int(progress["current"]["processed"]) if progress else int(content.get("epoch", 0)) + 1


def _missing(path: Path) -> str:
    """Say that a checkpoint is missing, with the ones nearby."""
    if path.is_dir():
        found = sorted(path.glob("*.ckpt")) + sorted(path.glob("checkpoints/*.ckpt"))
        what = f"{path} is a folder"
    else:
        found = sorted(path.parent.glob("*.ckpt"))
        what = f"there is no checkpoint {path}"
    near = f"; nearby: {', '.join(str(p) for p in found[:5])}" if found else ""
    return f"{what}; give a file that train.py wrote, OUTPUT/checkpoints/best.ckpt{near}"
