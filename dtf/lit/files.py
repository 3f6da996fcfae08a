"""Writing files that a run cannot do without: whole or not at all, and faults that name the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dtf.lit.command import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """Write a file beside its target, flush it to disk, rename it: at any time the target is whole.

    Args:
        path: the target; its folder is made where it is missing.
        mode: "w" for UTF-8 text (what UTF-8 cannot hold is written as an escape), "wb" for bytes.
        settings: further arguments of `open`.

    Raises:
        RunError: it cannot be written: no space, no permission, ... Nothing is left behind and an earlier
            file at `path` stays as it was.
    """
    path = Path(path)
    if "b" not in mode:
        settings = {"encoding": "utf-8", "errors": "backslashreplace"} | settings
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, mode, **settings) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def explaining(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of the operating system into one line that names the file and what to do.

    Raises:
        RunError: in place of OSError, and of the RuntimeError that torch makes of one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        # torch's zip writer ends in an error of its own, which hides that of the file below it.
        if not isinstance(error, OSError):
            cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        advice = (
            "free some space, then go on with the same command or resume=DIR"
            if cause.errno in _FULL
            else "make it writable, or choose another folder with output=DIR"
        )
        kept = f"; the last whole {Path(path).name} is kept" if Path(path).is_file() else ""
        raise RunError(f"cannot write {path}: {cause.strerror or cause}{kept}; {advice}") from error
