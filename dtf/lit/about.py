"""What has to be known to repeat a run: the command, the code's state, versions, the device."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from torch import nn

from dtf.lit.optim import GROUP_TITLES, OptimConfig, parameter_groups
from dtf.text import program

PACKAGES = ("torch", "pytorch-lightning", "timm", "torchvision", "av", "numpy")


def describe_run(
    name: str, trainer: pl.Trainer, network: nn.Module, optim: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The circumstances of the present run as plain data.

    Args:
        name: "train" or "eval".
        trainer: tells devices and precision.
        network: what is run, with a `name`.
        optim: its optimiser recipe; None: it is not trained.
    """
    groups = [] if optim is None else parameter_groups(network, OptimConfig.from_mapping(optim))
    # Done again, it belongs into a folder of its own.
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("output=")]
    return {
        "command": f"{program(name)} {shlex.join(overrides)}".rstrip(),
        "git": git_state(),
        "versions": _versions(),
        "device": f"{trainer.world_size} x {_device_name(trainer)}",
        "precision": str(trainer.precision),
        "network": network.name,
        # A graph's are constants that it does not tell.
        "parameters": sum(p.numel() for p in network.parameters()) or None,
        "parameter_groups": [
            {
                "name": GROUP_TITLES.get(group["name"], group["name"]),
                "tensors": len(group["params"]),
                "numbers": sum(p.numel() for p in group["params"]),
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
            }
            for group in groups
        ],
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the code, and whether its files differ from it: no text of any file.

    Args:
        folder: a repository's top folder; None: the one that this package lies in.

    Returns:
        {"commit": str, "dirty": bool}; None where the folder is no repository of its own or git is missing.
    """
    folder = Path(__file__).resolve().parents[2] if folder is None else folder
    top = _git(folder, "rev-parse", "--show-toplevel")
    # An installed package may lie somewhere inside a repository that it is no part of.
    if top is None or Path(top).resolve() != folder.resolve():
        return None
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if commit is None or status is None:
        return None
    return {"commit": commit, "dirty": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # The folder may be another user's, whose settings could name programs to run.
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("dtf", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _device_name(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
