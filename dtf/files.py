"""Writing files that a run cannot do without: whole or not at all, and faults that name the file.

And reading what a folder from anywhere says: plain data of a bounded size, or one line.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

import yaml  # type: ignore[import-untyped]

from dtf.errors import RunError

MOST_BYTES = 1 << 26
"""Of a JSON file that is read."""
MOST_BYTES_YAML = 1 << 20
"""Of a file of settings that is read."""
MOST_LEVELS_YAML = 40
"""Of lists and mappings within each other in such a file."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomically(path: str | os.PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
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


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """`atomically`, and a fault is one line that says what to do.

    Raises:
        RunError: it cannot be written: no space, no permission, ... Nothing is left behind and an earlier
            file at `path` stays as it was.
    """
    with explaining(path), atomically(path, mode, **settings) as file:
        yield file


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


def leads_out(path: str) -> bool:
    """Whether a path, taken below some folder, may lead out of it by its text: absolute, ~ or .. in it."""
    return PurePath(path).is_absolute() or path.startswith("~") or ".." in PurePath(path).parts


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file that may come from anywhere.

    Raises:
        ValueError: the file is too large, no JSON or no object of it; one line that names the file. Infinity,
            NaN and numbers beyond float64 are no JSON either.
    """
    text = read_text(Path(path), MOST_BYTES)
    try:
        found = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no table of names")
    return found


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The plain data in a file of settings that may come from anywhere; references stay as they are written.

    Raises:
        ValueError: the file is too large, no YAML, or refers to parts of itself, which can grow without end.
    """
    text = read_text(Path(path), MOST_BYTES_YAML)
    try:
        depth = 0
        # First its events alone: the time that nesting takes grows with its square.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_LEVELS_YAML:
                raise ValueError("it is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it refers to parts of itself")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {_reason(error)}") from None


def at(found: Any, *keys: str) -> Any:
    """An entry in tables within each other, as `read_json` and `read_yaml` give them; None: there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


class NotRegularError(OSError):
    """A pipe, a device, a folder or a socket where a file is needed; `strerror` says which."""


def check_regular(path: str | os.PathLike[str]) -> int:
    """Size in bytes of the regular file at the end of all links; for files that a library opens by name.

    Raises:
        OSError: there is none. NotRegularError: it is something else, which might never end.
    """
    return _size(os.stat(path), path)


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file for reading bytes, unbuffered, if it is a regular one; a pipe does not make it wait.

    Args:
        path: links are followed.

    Raises:
        OSError: it cannot be opened.
        NotRegularError: it is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for its other end. It has no effect on regular files.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _size(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return io.FileIO(descriptor)


def open_sound(path: str | os.PathLike[str]) -> IO[bytes]:
    """The same, buffered, for a file that a run has written: what is no regular file is damaged.

    Raises:
        ValueError: it is no regular file; one line that names it.
    """
    try:
        return io.BufferedReader(open_regular(path))
    except NotRegularError as error:
        raise ValueError(f"{path} is damaged: it {error.strerror}") from None


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file that may come from anywhere.

    Raises:
        ValueError: the file is too large, no regular file or no UTF-8; one line that names it.
    """
    with open_sound(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path} is damaged: it has more than {most_bytes >> 20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: it is no UTF-8 text") from None


def _size(status: os.stat_result, path: str | os.PathLike[str]) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise NotRegularError(0, f"is {kind}", os.fspath(path))
    return status.st_size


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}")
    return value


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False, default=str)
    with replacing(path) as file:
        file.write(text + "\n")
