"""What a value is that comes from settings or from a file. True and false are no numbers."""

from __future__ import annotations

from typing import Any, TypeGuard


def is_integer(value: Any) -> TypeGuard[int]:
    """..., -1, 0, 1, 2, ..."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Integers, and floats, among them infinity and nan."""
    return isinstance(value, int | float) and not isinstance(value, bool)
