"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """Write a file beside its target, flush it to disk, rename it: at any time the target is whole.

    Args:
        path: the target; its folder is made where it is missing.
        mode: "w" for UTF-8 text (what UTF-8 cannot hold is written as an escape), "wb" for bytes.
        settings: further arguments of `open`.

    Raises:
        OSError: it cannot be written. Nothing is left behind and an earlier file at `path` stays as it was.
    """
    path = Path(path)
    if "b" not in mode:
        settings = {"encoding": "utf-8", "errors": "backslashreplace"} | settings
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, mode, **settings) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
