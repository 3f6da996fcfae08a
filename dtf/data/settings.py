"""Settings, plain data from a config or a file, to dataclasses; what is wrong is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dtf.data.lists import raise_faults
from dtf.text import nearest

T = TypeVar("T")


def known(given: Mapping[str, Any] | None, allowed: Sequence[str], where: str) -> Mapping[str, Any]:
    """The mapping itself when all its keys are allowed; ValueError with the nearest names otherwise."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{where}: must be a mapping {{{allowed[0]}: ..., ...}}, got {given!r}")
    faults = []
    for key in given or {}:
        if key not in allowed:
            hint = nearest(str(key), allowed, repr) or ";"
            faults.append(f"unknown key {key!r}{hint} allowed: {', '.join(allowed)}")
    raise_faults(where, faults)
    return given or {}


def build(cls: type[T], shared: Mapping[str, Any], given: Mapping[str, Any] | None, where: str) -> T:
    """An instance of a dataclass from settings, lists becoming tuples."""
    assert dataclasses.is_dataclass(cls)
    allowed = [f.name for f in dataclasses.fields(cls) if f.name not in shared]
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in known(given, allowed, where).items()
    }
    try:
        return cls(**shared, **settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
