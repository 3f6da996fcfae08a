"""Reads tests/golden: numbers that the original layers and networks computed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def stored(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The arrays of a file, and what it says of how they were made."""
    with np.load(path) as data:
        meta = json.loads(str(data["meta"]))
        return {key: torch.from_numpy(np.asarray(data[key])) for key in data if key != "meta"}, meta


def files(family: str, kind: str, count: int) -> list[object]:
    """The files of a kind as parameters of a test; there are `count`."""
    found = sorted((GOLDEN / family).glob(f"{kind}_*.npz"))
    assert len(found) == count
    return [pytest.param(path, id=path.stem) for path in found]


def original_state(path: Path) -> dict[str, Tensor]:
    """The state dict of an original network, drawn anew from its entries' names in a .state.json."""
    about = json.loads(path.read_text())
    state = {}
    for name, shape, dtype, fill, total in about["state"]:
        if fill == "kept":
            # Constants and tables of the original, which its file does not hold: nothing may read them.
            state[name] = torch.full(shape, torch.nan) if "float" in dtype else torch.zeros(shape).long()
            continue
        state[name] = _value(name, shape, dtype.removeprefix("torch."), about.get("weight_std", 0.05))
        assert state[name].double().sum().item() == pytest.approx(total, rel=1e-4, abs=1e-4), name
    return state


def _value(name: str, shape: list[int], dtype: str, weight_std: float) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not dtype.startswith("float"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.75
    if name.endswith(".weight") and len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * (weight_std if len(shape) >= 2 else 0.05)
