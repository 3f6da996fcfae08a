"""What `make test-quick` keeps of a test that runs for many values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], *kept: Any) -> list[Any]:
    """The same values for `parametrize`, a tuple for several names; all but those kept are marked as slow."""
    values = list(values)
    missing = [value for value in kept if value not in values]
    assert not missing, f"{missing} are not among {values}"
    return [value if value in kept else slow(value) for value in values]


def slow(value: Any) -> Any:
    """One value, or a tuple for several names, marked as slow."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
