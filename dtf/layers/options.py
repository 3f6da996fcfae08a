"""Options of networks and layers: dataclasses of plain data, each value checked once, by what its field says.

@dataclass(frozen=True)
class PoolOptions(Options):
    kernel_size: int = option(3, positive_integer)
    mode: str = option("mean", one_of("mean", "max"))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from dtf.values import is_integer, is_number

Check = Callable[[Any], str]
"""From a value to what it must be, "" where it is: `positive_integer(0) == "a positive integer"`."""


def option(default: Any, check: Check) -> Any:
    """A field of an :class:`Options` dataclass."""
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of all options.

    Raises:
        ValueError: Values out of range; all faults at once.
    """

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = field.metadata["check"](value)
            if wanted:
                faults.append(f"{field.name} must be {wanted}, got {value!r}")
        if faults:
            raise ValueError("; ".join(faults))


def defaults_of(options: type[Options]) -> dict[str, Any]:
    """Field name -> default."""
    return {field.name: field.default for field in dataclasses.fields(options)}


def _is_positive(value: Any) -> bool:
    return is_integer(value) and value >= 1


def positive_integer(value: Any) -> str:
    """1, 2, 3, ..."""
    return "" if _is_positive(value) else "a positive integer"


def positive_number(value: Any) -> str:
    """Above 0 and finite."""
    return "" if is_number(value) and 0 < value < math.inf else "a positive number"


def share(value: Any) -> str:
    """0 <= value < 1: a probability that is not certain."""
    good = is_number(value) and 0 <= value < 1
    return "" if good else "a number from 0 up to but not including 1"


def positive_integers(example: tuple[int, ...]) -> Check:
    """A list of positive integers, one for each stage for instance."""

    def check(value: Any) -> str:
        good = isinstance(value, list | tuple) and value and all(map(_is_positive, value))
        return "" if good else f"a list of positive integers like {list(example)}"

    return check


def side_or_sides(value: Any) -> str:
    """A positive integer or (height, width)."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_positive, value))
    return "" if pair or _is_positive(value) else "a positive integer or two"


def one_of(*allowed: Any) -> Check:
    """One of these values."""

    def check(value: Any) -> str:
        # 1 == True, but is no answer to a question of yes and no.
        good = any(value == a and type(value) is type(a) for a in allowed)
        return "" if good else f"one of {', '.join(map(str, allowed))}"

    return check


def optional(check: Check) -> Check:
    """None, or what `check` wants."""

    def either(value: Any) -> str:
        wanted = "" if value is None else check(value)
        return f"null or {wanted}" if wanted else ""

    return either
