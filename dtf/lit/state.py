"""The state that a run goes on with, tried before the run is touched: a file may say anything.

Lightning takes up most of a checkpoint unseen: what is wrong with it would come out as a trace, somewhere on
the way or after hours. Here each part is loaded into something that is thrown away, and compared with what
this very run would write.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from packaging.version import Version

from dtf.lit.engine import Engine
from dtf.lit.optim import build_optimizer
from dtf.runs.checkpoint import read_content
from dtf.values import is_integer, is_number

_MOST = 2**53
"""Steps, batches and epochs are below: larger numbers do not survive their way through floats."""


def check_state(path: Path, trainer: pl.Trainer, model: Engine) -> None:
    """Refuse a checkpoint of this run that training could not go on from.

    Args:
        path: of a file that `dtf.runs.checkpoint.load_checkpoint` reads.
        trainer: of the run, which has not begun.
        model: of the run, with its network on the CPU. Neither is changed.

    Raises:
        ValueError: names the part of the state that does not fit.
    """
    content = read_content(path, mmap=True)
    parts = {
        "pytorch-lightning_version": _check_version,
        "state_dict": _check_weights,
        "current_model_state": _check_weights,
        "averaging_state": _check_averages,
        "loops": _check_loops,
        "optimizer_states": _check_optimizer,
        "lr_schedulers": _check_schedule,
        "callbacks": _check_callbacks,
        "train_metrics": _check_means,
        "nonfinite": _check_losses,
    }
    required = {"pytorch-lightning_version", "state_dict", "loops", "optimizer_states", "lr_schedulers"}
    for name, check in parts.items():
        try:
            if name not in content:
                if name in required:
                    raise ValueError("it is missing")
            else:
                check(content[name], trainer, model)
        except Exception as error:  # libraries meet a state that is none with errors of any kind
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            raise ValueError(
                f"{path}: damaged state of the run: {name}: {reason}. Put a sound copy of the file in its "
                "place, or remove it and the run starts again"
            ) from error


def _check_version(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    if Version(found).major < 2:
        raise ValueError(f"Lightning {found} wrote it, which this version cannot read")


def _check_weights(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    expected = model.state_dict()
    _check_keys(found, expected, exactly=True)
    for name, tensor in expected.items():
        _check_tensor(found[name], tensor.shape, name)
        if found[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} has type {found[name].dtype}")


def _check_averages(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    _check_keys(found, ["n_averaged"], exactly=True)
    _check_tensor(found["n_averaged"], (), "n_averaged")


def _check_loops(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    loops = {
        "fit_loop": trainer.fit_loop,
        "validate_loop": trainer.validate_loop,
        "test_loop": trainer.test_loop,
    }
    _check_keys(found, loops)
    for name, loop in loops.items():
        expected = loop.state_dict()
        if not isinstance(found[name], Mapping):
            raise ValueError(f"{name} must be a mapping")
        for key, value in found[name].items():
            if key in expected:  # Lightning leaves the others aside
                _check_like(value, expected[key], f"{name}.{key}")
    for state in found["fit_loop"].get("state_dict", {}).get("combined_loader", []):
        _check_like(state, {"epoch": 0, "batches": 0}, "combined_loader")


def _check_optimizer(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    fresh, optimizer = (build_optimizer(model.network, model.optim) for _ in range(2))
    if not isinstance(found, list) or len(found) != 1:
        raise ValueError("it must be a list of one state")
    optimizer.load_state_dict(found[0])
    for group, expected in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        for key, value in expected.items():
            if key != "params":
                _check_like(group[key], value, key)
    known = {parameter for group in fresh.param_groups for parameter in group["params"]}
    for parameter, state in optimizer.state.items():
        if parameter not in known:
            raise ValueError("it has a state for a parameter that there is not")
        for key, value in state.items():
            if value is not None or key != "momentum_buffer":
                _check_tensor(value, () if key == "step" else parameter.shape, str(key))
        if state and model.optim.name == "adamw":
            _check_keys(state, ["step", "exp_avg", "exp_avg_sq"])


def _check_schedule(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], Mapping):
        raise ValueError("it must be a list of one state")
    schedule = torch.optim.lr_scheduler.LambdaLR(
        build_optimizer(model.network, model.optim), lambda step: 1.0
    )
    _check_like(found[0], schedule.state_dict(), "schedule")
    if any(state is not None for state in found[0]["lr_lambdas"]):
        raise ValueError("lr_lambdas must be without state")


def _check_callbacks(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    _check_keys(found, [])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in found:
            try:
                tried = copy.deepcopy(callback)
                tried.load_state_dict(found[callback.state_key])
                # Seconds that have not begun are 0, an int.
                _check_like(tried.state_dict(), callback.state_dict(), "state", counts=False)
            except Exception as error:  # as above
                raise ValueError(f"{type(callback).__name__}: {error}") from error


def _check_means(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    for name, sums in model.sums_of(found).items():
        _check_keys(sums, ["total", "count"], exactly=True)
        for key, value in sums.items():
            _check_tensor(value, (), f"{name}.{key}")


def _check_losses(found: Any, trainer: pl.Trainer, model: Engine) -> None:
    copy.copy(model.nonfinite).load_state_dict(found)


def _check_keys(found: Any, expected: Iterable[str], exactly: bool = False) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"it must be a mapping, got {type(found).__name__}")
    if missing := [key for key in expected if key not in found]:
        raise ValueError(f"{missing[0]} is missing")
    if exactly and len(found) != len(list(expected)):
        raise ValueError("it has entries that there are not")


def _check_tensor(found: Any, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(found, torch.Tensor) or found.shape != shape or found.is_complex():
        raise ValueError(f"{name} must be a tensor of shape {tuple(shape)}")


def _check_like(found: Any, expected: Any, name: str, counts: bool = True) -> None:
    """Whether it has the keys and types of what this run would write; containers empty there may hold any."""
    if isinstance(expected, Mapping):
        _check_keys(found, [])
        for key, value in expected.items():
            if key not in found:
                raise ValueError(f"{name}: {key} is missing")
            _check_like(found[key], value, str(key), counts)
        if expected and (more := [key for key in found if key not in expected]):
            raise ValueError(f"{name}: there is no {str(more[0])[:80]}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or (expected and len(found) != len(expected)):
            raise ValueError(f"{name} must be a list of {len(expected)}")
        for value, other in zip(found, expected, strict=False):
            _check_like(value, other, name, counts)
    elif isinstance(expected, float) or (type(expected) is int and not counts):
        if not is_number(found) or not abs(found) < _MOST:
            raise ValueError(f"{name} must be a number, got {str(found)[:80]}")
    elif type(expected) is int:
        if not is_integer(found) or not 0 <= found < _MOST:
            raise ValueError(f"{name} must be a count, got {str(found)[:80]}")
    elif expected is None:  # chosen, or measured, on the way
        if not isinstance(found, bool | None):
            _check_tensor(found, (), name)
    elif not isinstance(found, type(expected)):
        raise ValueError(f"{name} must be of type {type(expected).__name__}, got {type(found).__name__}")
