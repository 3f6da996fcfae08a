"""Foreign text, escaped for the place where it is shown: one function a place.

Names of classes, files and settings come from checkpoints, lists and folders, and may hold anything: signs
that steer a terminal, line ends that forge a line of a log, formulas that a spreadsheet runs, markup. (The
page escapes by its template, see `dtf.view.report`; pictures have `dtf.view.figures.drawable`.)
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are full-width forms
_HARMLESS = re.compile(r"[-+](\d*\.?\d+(e[-+]?\d+)?|[\w-]+)", re.ASCII | re.IGNORECASE)
"""Numbers, and words without a call or a dot: the ids of YouTube may begin with "-"."""


def printable(text: str) -> str:
    """One line that every terminal, log and encoding takes: control signs and odd bytes become escapes."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, most: int = 80) -> str:
    """A text that may have any length, for a message: what is beyond `most` signs becomes "..."."""
    return text if len(text) <= most else f"{text[:most]}..."


def printable_lines(text: str) -> str:
    """`printable`, but line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def markup(text: object) -> str:
    """Text for a console of rich: one line in which nothing is markup."""
    from rich.markup import escape

    return escape(printable(str(text)))


def cell(text: str) -> str:
    """Text for CSV: one line that no spreadsheet takes for a formula (it gets a ' before it)."""
    plain = printable(text)
    if plain.lstrip().startswith(_FORMULA) and not _HARMLESS.fullmatch(plain):
        return f"'{plain}"
    return plain


def file_name(text: str, max_bytes: int) -> str:
    """A name of letters, digits, "_", "." and "-" for a new file, not hidden; "" where nothing is left."""
    plain = re.sub(r"[^\w.-]+", "_", printable(text))
    return plain.encode()[:max_bytes].decode(errors="ignore").strip(".")


class _Escape(logging.Filter):
    """Makes log records printable: what is put into a message is data and stays on its line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            kinds = (str, os.PathLike, BaseException)
            record.args = tuple(printable(str(a)) if isinstance(a, kinds) else a for a in record.args)
        record.msg, record.args = printable_lines(record.getMessage()), None
        return True


_ESCAPE = _Escape()


def escape_logs() -> None:
    """From now on, what the present handlers of the log write is printable."""
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_ESCAPE)


def degrade_output() -> None:
    """From now on, printing shows a "?" for what the terminal's encoding lacks, and never fails for it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def quiet_on_closed_pipe() -> Iterator[None]:
    """End the process without a word when nobody reads what it prints any more, as with `... | head -1`.

    Raises:
        SystemExit: 141, as of a program that SIGPIPE has ended.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise  # another pipe's
        # Python writes what is left in the buffer at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _is_closed(output: TextIO) -> bool:
    """Whether nobody reads an output that is a pipe."""
    if not hasattr(select, "poll"):  # Windows, where writing to such a pipe is another error
        return False
    poll = select.poll()
    poll.register(output.fileno(), 0)
    return bool(poll.poll(0))


_CONSOLE = re.compile(r"python -m dtf\.(?:data\.)?(predict|explain|export|profile|report|sweep|prepare)\b")


def as_started(text: str) -> str:
    """A text with the names of commands as one starts them here.

    Where a console command was typed they are `dtf-predict` for `python -m dtf.predict` and so on. A package
    that is installed has no train.py: there, `python train.py` is `dtf-train` in any case.
    """
    typed = Path(sys.argv[0]).name.startswith("dtf-")
    if typed:
        text = _CONSOLE.sub(r"dtf-\1", text)
    if typed or not (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        text = re.sub(r"python (train|eval)\.py\b", r"dtf-\1", text)
    return text


def program(name: str) -> str:
    """How "train" or "eval" is started: `python train.py` in the repository, `dtf-train` of a package."""
    return as_started(f"python {name}.py")


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str, most: int = 1) -> str:
    """`; did you mean X?` for the nearest known names, or an empty text.

    Args:
        name: what was given.
        known: what is allowed.
        show: a name as the message has it, `repr` for one with quotes.
        most: names to show, with "or" between them.
    """
    matches = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f"; did you mean {' or '.join(map(show, matches))}?" if matches else ""
