"""A lock of a file that ends with its process, however that ends."""

from __future__ import annotations

import errno
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[str]) -> bool:
    """Whether this process now has the file's lock; where the file system has no locks, as if it had.

    Args:
        file: open for writing; closing it, or another one of the same path, gives the lock back.

    Raises:
        ValueError: this platform has no such locks.
    """
    if fcntl is None:
        raise ValueError(
            "this platform has no file locks that end with their process, which runs and searches need: "
            "use Linux or macOS, on Windows WSL; dtf.models, dtf.ops, predict, explain, export and profile "
            "need none"
        )
    try:
        # Of the process: neither the loader's workers nor other processes of the run inherit it. They would
        # inherit that of flock (and of the package filelock), and hold it when this process has been killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True
