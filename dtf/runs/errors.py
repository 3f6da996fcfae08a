"""Errors of a command that its user can act on, in one line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dtf.errors import RunError
from dtf.runs.process import FULL_ERROR
from dtf.text import as_started, degrade_output, printable, quiet_on_closed_pipe


def explain(error: BaseException) -> str | None:
    """One line for an error that a user can act on, None for one that is ours.

    A list of faults has a line for each of them, indented by two blanks. Errors of Hydra are told by
    `dtf.runs.composing.explain`.
    """
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is None:
            return str(error)
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError) and _is_raised_here(error):
        return str(error)
    if isinstance(error, RuntimeError) and str(error).startswith('Could not detect "srun"'):
        return (
            "hydra/launcher=submitit_slurm needs Slurm, and there is no srun here: start the sweep on a "
            "machine of the cluster, or take hydra/launcher=submitit_local (docs/sweeps.md)"
        )
    # By name: these packages are imported late or not at all.
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if "torch.OutOfMemoryError" in kinds:
        return "out of GPU memory: lower data.batch_size (and raise trainer.accumulate_grad_batches)"
    if any(kind.endswith(".MisconfigurationException") for kind in kinds):
        return f"trainer: {error}"
    if "submitit.core.utils.UncompletedJobError" in kinds:
        return (
            f"{' '.join(str(error).split())}; the other jobs go on, python -m dtf.sweep DIR shows how far "
            "they are; when they have ended, the same command does what is missing"
        )
    if any(kind.startswith("wandb.") for kind in kinds):
        return f"Weights & Biases: {error}; without an account: logger.wandb.offline=true"
    return None


@contextmanager
def one_line_errors(told: Callable[[BaseException], str | None] = explain) -> Iterator[None]:
    """Print errors that a user can act on as `error: ...` and exit with code 1.

    What is printed meanwhile never fails for the terminal's encoding: it shows a "?" for what it lacks. Where
    nobody reads it any more, the process ends without a word.

    Args:
        told: an error in one line; None: it is ours.
    """
    show_trace = os.environ.get(FULL_ERROR) is not None
    degrade_output()
    try:
        with quiet_on_closed_pipe():
            yield
    except Exception as error:
        text = None if show_trace else told(error)
        if text is None:
            raise
        rank = os.environ.get("LOCAL_RANK", "0")
        prefix = "error: " if rank == "0" else f"error (process {rank}): "
        print(prefix + _laid_out(as_started(text)), file=sys.stderr)
        sys.exit(error.code if isinstance(error, RunError) else 1)


def _laid_out(text: str) -> str:
    """One line, and one more for each entry of a list of faults, which are indented by two blanks."""
    lines = re.split(r"\n(?=  \S)", text)
    return "\n  ".join(printable(" ".join(line.split())) for line in lines)


def _is_raised_here(error: BaseException) -> bool:
    """Whether our code raised the error (a user's fault) or a library did (then its trace matters)."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).resolve().parents[2]
    if not frames:
        return False
    last = Path(frames[-1].filename).resolve()
    if last in (root / "train.py", root / "eval.py"):
        return True
    return not {root / "dtf", root / "hydra_plugins"}.isdisjoint(last.parents)
