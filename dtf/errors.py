"""Errors that are shown to a user as one line."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run that cannot go on for a reason that its user can act on. Shown as one line.

    Attributes:
        code: exit code of the process that it ends.
    """

    code = 1
