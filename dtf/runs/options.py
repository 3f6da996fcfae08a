"""Command lines of the tools that need no configuration: files and KEY=VALUE options."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dtf.runs.errors import one_line_errors
from dtf.text import as_started, escape_logs, file_name, nearest

_STEM_BYTES = 160  # with the longest ending, and that of a file not yet whole, below the 255 of file systems


def parse_options(arguments: Sequence[str], known: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command-line arguments as (files, options).

    A file whose name has a "=" is taken for a file when it exists.

    Args:
        arguments: as in `sys.argv[1:]`.
        known: options with their default values.

    Raises:
        ValueError: an unknown option, with the nearest known one.
    """
    files, options = [], dict(known)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in known:
            options[key] = value
        elif equals and re.fullmatch(r"\w+", key) and not os.path.exists(argument):
            raise ValueError(f"there is no option {key}{nearest(key, known)} (there are: {', '.join(known)})")
        elif argument.startswith("--") and not os.path.exists(argument):
            raise ValueError(f"there is no option {argument}; options are KEY=VALUE: {', '.join(known)}")
        else:
            files.append(argument)
    return files, options


def yes_or_no(options: Mapping[str, str], key: str) -> bool:
    """The value of a switch.

    Raises:
        ValueError: it is neither true nor false.
    """
    value = options[key].lower()
    if value not in ("true", "false"):
        raise ValueError(f"{key} must be true or false, got {options[key]!r}")
    return value == "true"


def number(options: Mapping[str, str], key: str, least: int, what: str) -> int:
    """The value of a whole-number option.

    Args:
        options: as `parse_options` returns.
        key: of the option.
        least: smallest allowed value.
        what: it counts.

    Raises:
        ValueError: anything else.
    """
    value = options[key]
    if not (value.isascii() and value.isdecimal() and int(value) >= least):
        raise ValueError(f"{key} must be a number of {what}, at least {least}, got {value!r}")
    return int(value)


def seconds(options: Mapping[str, str], key: str) -> float | None:
    """The value of an option in seconds; None where it is empty.

    Raises:
        ValueError: it is no number above 0.
    """
    text = options[key]
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text, flags=re.ASCII) or not 0 < float(text) < math.inf:
        raise ValueError(f"{key} must be seconds above 0, for example {key}=2.0; got {text!r}")
    return float(text)


def run_command(text: str, run: Callable[[Sequence[str]], int], arguments: Sequence[str] | None) -> int:
    """Run a tool: help on request, a user's mistakes in one line.

    Args:
        text: the help.
        run: takes the arguments, returns the exit code.
        arguments: None: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        if not arguments or any(a in ("-h", "--help") for a in arguments):
            print(as_started(text))
            return 0 if arguments else 2
        escape_logs()
        return run(arguments)
    return 1


class FileNames:
    """File names for what is written about each video, all different within a call."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def stem(self, video: str) -> str:
        """Such a name, without its ending."""
        plain = file_name(Path(video).name, _STEM_BYTES) or "video"
        stem, count = plain, 1
        while stem.casefold() in self._taken:
            count += 1
            stem = f"{plain}-{count}"
        self._taken.add(stem.casefold())
        return stem
