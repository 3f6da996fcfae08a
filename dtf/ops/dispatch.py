"""Backends of the operators: what each can do, why it cannot, and the choice between them.

An operator is implemented up to three times under one public function:

* ``reference``: plain torch, obviously right, any device and floating dtype, differentiable any number of
  times;
* ``torch``: the same numbers from fewer passes over memory, one operator for ``torch.compile`` and
  ``torch.export``;
* ``cupy``: CUDA C++ compiled by NVRTC through CuPy.

Each operator's folder holds one module per backend and registers them here with :class:`Backend`. A backend
says in :meth:`Backend.refusals` why it cannot run given inputs; the list is empty when it can. What is
installed is asked when an operator is called, never when it is imported.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch

BackendName = Literal["auto", "reference", "torch", "cupy"]

log = logging.getLogger(__name__)

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _always_live() -> list[str]:
    return []


def _refuses_nothing(x: torch.Tensor) -> list[str]:
    return []


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator and what it accepts.

    Attributes:
        name: ``reference``, ``torch`` or ``cupy``.
        run: The implementation; called with the operator's checked arguments.
        devices: Device types it accepts; ``None`` for all.
        dtypes: Dtypes it accepts.
        double_backward: Whether gradients of gradients are available.
        deterministic: Whether equal inputs give equal bits on one machine, gradients included.
        missing: Returns the reasons why the backend cannot run on this machine at all; empty when it can.
        refuses: Returns further reasons why it cannot run on a tensor; empty when it can.
    """

    name: str
    run: Callable[..., Any]
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATING
    double_backward: bool = False
    deterministic: bool = True
    missing: Callable[[], list[str]] = _always_live
    refuses: Callable[[torch.Tensor], list[str]] = _refuses_nothing

    def accepts(self, x: torch.Tensor) -> bool:
        """Whether :meth:`refusals` is empty; the tensor is asked first, what is installed last."""
        wanted = self.devices is None or x.device.type in self.devices
        return wanted and x.dtype in self.dtypes and not self.refusals(x)

    def refusals(self, x: torch.Tensor) -> list[str]:
        """Returns why this backend cannot run on ``x``; an empty list when it can."""
        reasons = []
        if self.devices is not None and x.device.type not in self.devices:
            reasons.append(f"takes tensors on {' or '.join(self.devices)}, got {x.device.type}")
        if x.dtype not in self.dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            reasons.append(f"takes dtypes {names}, got {str(x.dtype).removeprefix('torch.')}")
        return reasons + list(_missing(self)) + self.refuses(x)


def _missing(backend: Backend) -> tuple[str, ...]:
    # What is installed does not change under a compiled graph, and looking it up cannot be traced.
    return tuple(backend.missing())


@dataclass
class Operator:
    """A public operator with its backends in the order in which ``auto`` prefers them."""

    name: str
    backends: dict[str, Backend]
    announced: set[str] = field(default_factory=set)

    def select(self, backend: str, x: torch.Tensor) -> Callable[..., Any]:
        """Returns the implementation that runs on ``x``.

        ``auto`` takes the first backend that accepts ``x`` and logs each choice once. ``reference`` is there
        for checking and is never chosen by ``auto``.

        Raises:
            ValueError: Unknown backend name, or the named backend (with ``auto``: every backend) refuses
                ``x``.
        """
        if backend != "auto":
            if backend not in self.backends:
                raise ValueError(
                    f"{self.name}: unknown backend {backend!r}; {_allowed(backend, ['auto', *self.backends])}"
                )
            reasons = self.backends[backend].refusals(x)
            if reasons:
                raise ValueError(
                    f"{self.name}: backend {backend!r} cannot run: {'; '.join(reasons)}. "
                    "Use backend='auto', or see `python -m dtf.ops` for what is live here."
                )
            return self.backends[backend].run
        candidates = [candidate for candidate in self.backends.values() if candidate.name != "reference"]
        for candidate in candidates:
            if candidate.accepts(x):
                # Logging cannot be traced; a compiled graph keeps its choice anyway.
                if not torch.compiler.is_compiling() and candidate.name not in self.announced:
                    self.announced.add(candidate.name)
                    log.info("%s: backend %r on %s", self.name, candidate.name, x.device.type)
                return candidate.run
        refused = [f"{candidate.name}: {'; '.join(candidate.refusals(x))}" for candidate in candidates]
        raise ValueError(f"{self.name}: no backend can run. {' | '.join(refused)}")


OPERATORS: dict[str, Operator] = {}


def register(name: str, *backends: Backend) -> Operator:
    """Registers an operator; ``auto`` prefers ``backends`` in the given order."""
    assert name not in OPERATORS, f"operator {name} is registered twice"
    OPERATORS[name] = Operator(name, {backend.name: backend for backend in backends})
    return OPERATORS[name]


def cupy_missing() -> list[str]:
    """Returns why CuPy kernels cannot run on this machine."""
    reasons = []
    if importlib.util.find_spec("cupy") is None:
        reasons.append(
            "CuPy is not installed (pip install -e '.[cuda13]', or cuda12, cuda11: your CUDA major)"
        )
    if not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    return reasons


# The kernels convert float16 and bfloat16 by instructions that older devices lack.
_LEAST_CAPABILITY = {torch.float16: (5, 3), torch.bfloat16: (8, 0)}


def _lacks_conversion(x: torch.Tensor) -> list[str]:
    needed = _LEAST_CAPABILITY.get(x.dtype)
    if needed is None or x.device.type != "cuda" or not torch.cuda.is_available():
        return []
    found = _capability(x.device.index)
    if found >= needed:
        return []
    return [
        f"{str(x.dtype).removeprefix('torch.')} needs compute capability {needed[0]}.{needed[1]}, "
        f"{x.device} has {found[0]}.{found[1]}"
    ]


def _capability(device_index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


for _constant in (_missing, _capability):
    # What torch.compiler.assume_constant_result does, without its import of the compiler: 2.7 s.
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010 (mypy: functions have no such attribute)


def cupy_kernels(run: Callable[..., Any]) -> Backend:
    """Returns the ``cupy`` backend of an operator whose custom operator is ``run``."""
    return Backend("cupy", run, devices=("cuda",), missing=cupy_missing, refuses=_lacks_conversion)


def _allowed(given: str, names: list[str]) -> str:
    near = get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(names)}"


def describe() -> str:
    """Returns a table of every operator's backends: live, or the reasons why not."""
    lines = [
        f"torch {torch.__version__}, CUDA {'available' if torch.cuda.is_available() else 'not available'}"
    ]
    for operator in OPERATORS.values():
        lines.append(operator.name)
        for backend in operator.backends.values():
            missing = backend.missing()
            if missing:
                lines.append(f"  {backend.name:<10} not live: {'; '.join(missing)}")
                continue
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.dtypes)
            notes = [
                " or ".join(backend.devices) if backend.devices else "any device",
                dtypes,
                "double backward" if backend.double_backward else "backward",
                "deterministic" if backend.deterministic else "not deterministic",
            ]
            lines.append(f"  {backend.name:<10} live: {'; '.join(notes)}")
    return "\n".join(lines)
