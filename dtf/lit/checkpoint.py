"""Checkpoints: written whole or not at all, holding plain data only, read without running any code in them.

A checkpoint is Lightning's dictionary (weights in `state_dict`, prefixed "network.") plus a key `dtf`:

    {"format": 1,
     "model": {"name": ..., "arguments": {...}},   create_model(name, **arguments) rebuilds the network
     "class_names": [...],
     "data": {...},                                the run's data config, resolved: clip length, sampling, ...
     "config": {...}}                              the run's whole config, resolved
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dtf.lit.files import replacing
from dtf.models import VideoNetwork, create_model

FORMAT = 1
PREFIX = "network."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a killed run leaves the last whole file.

    Lightning's own way goes through the folder for temporary files, which may be another file system: then it
    ends in a copy that can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint atomically.

        Raises:
            RunError: the folder cannot be written or the disk is full; an earlier file at `path` stays whole.
        """
        assert storage_options is None
        with replacing(path, "wb") as file:
            torch.save(checkpoint, file)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says, see the head of this module.

    Attributes:
        path: where it was read from.
        state_dict: weights of the network, names as in the network.
        model: {"name": str, "arguments": dict}.
        class_names: one name per class.
        data: data config of the run.
        config: whole config of the run.
        epoch: epochs finished when it was written, their validation included.
        step: optimiser steps taken.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    model: dict[str, Any]
    class_names: list[str]
    data: dict[str, Any]
    config: dict[str, Any]
    epoch: int
    step: int

    def build_network(self) -> VideoNetwork:
        """The trained network, in evaluation mode.

        Raises:
            ValueError: the weights do not belong to the network that the file names.
        """
        network = create_model(self.model["name"], **self.model["arguments"])
        try:
            network.load_state_dict(self.state_dict)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:4]]
            raise ValueError(
                f"{self.path}: its weights do not fit the network {self.model['name']} that it names: "
                + " ".join(lines)
            ) from None
        return network.eval()


def describe(
    network: VideoNetwork, class_names: list[str], data: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The `dtf` entry of a checkpoint, from a network with attributes `name` and `arguments`."""
    return {
        "format": FORMAT,
        "model": {"name": network.name, "arguments": network.arguments},
        "class_names": list(class_names),
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
    damaged = f"{path} is no checkpoint, or a damaged one ({path.stat().st_size} bytes)"
    # Files of torch.save are zip archives; anything else would reach readers of old formats.
    if not zipfile.is_zipfile(path):
        raise ValueError(damaged)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not weights)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than plain data; files that could run code are not read"
        ) from None
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(f"{damaged}: {str(error).strip().splitlines()[0]}") from None
    about = content.get("dtf") if isinstance(content, dict) else None
    if not isinstance(about, dict) or "state_dict" not in content:
        raise ValueError(
            f"{path} is a checkpoint of something else: it does not say which dtf network it holds"
        )
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {about.get('format')!r}; this version reads {FORMAT}")
    state = {k[len(PREFIX) :]: v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    return Checkpoint(
        path=path,
        state_dict=state,
        model=about["model"],
        class_names=about["class_names"],
        data=about["data"],
        config=about["config"],
        epoch=_epochs(content),
        step=int(content.get("global_step", 0)),
    )


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
