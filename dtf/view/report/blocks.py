"""Pieces of which the sections of a page consist."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

Block = dict[str, Any]
"""A piece of a section, shown by the macro of that name in report.html: plain data."""
ROWS_SHOWN = 100
"""Of a table whose length a file decides."""


def pairs(lines: Iterable[tuple[str, Any]]) -> Block:
    return {"pairs": [(name, value) for name, value in lines if value is not None]}


def image(content: bytes, kind: str, alt: str, use: str = "drawn") -> dict[str, Any]:
    """A picture for the template; `use`: "drawn" on paper, which dark mode turns dark, or "frames"."""
    return {"kind": kind, "base64": base64.b64encode(content).decode(), "alt": alt[:1000], "use": use}
