"""Backends of the operators: what each can do, why it cannot, and the choice between them.

An operator is implemented up to three times under one public function:

* ``reference``: plain torch, obviously right, any device and floating dtype, differentiable any number of
  times;
* ``torch``: the same numbers from fewer passes over memory, one operator for ``torch.compile`` and
  ``torch.export``;
* ``cupy``: CUDA C++ compiled by NVRTC through CuPy.

Each operator's folder holds one module per backend and registers them here with :class:`Backend`, together
with its plain form for exported graphs and its cost. A backend says in :meth:`Backend.refusals` why it cannot
run given inputs; the list is empty when it can. What is installed is asked when an operator is called, never
when it is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dtf.ops.common import runtime
from dtf.ops.common.private import constant_in_graphs
from dtf.text import nearest

BackendName = Literal["auto", "reference", "torch", "cupy"]

log = logging.getLogger(__name__)

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _always_live() -> list[str]:
    return []


def _refuses_nothing(*tensors: torch.Tensor) -> list[str]:
    return []


@dataclass(frozen=True)
class Cost:
    """What one call of an operator costs at the least, forward.

    Attributes:
        flops: Two for a multiply-add.
        num_bytes: Read from and written to memory when every tensor is touched once.
    """

    flops: int
    num_bytes: int


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
        refuses: Returns further reasons why it cannot run on given tensors; empty when it can.
        custom_op: "LIBRARY::NAME" of the torch operator that ``run`` is; ``None`` where it is plain torch.
    """

    name: str
    run: Callable[..., Any]
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATING
    double_backward: bool = False
    deterministic: bool = True
    missing: Callable[[], list[str]] = _always_live
    refuses: Callable[..., list[str]] = _refuses_nothing
    custom_op: str | None = None

    def accepts(self, *tensors: torch.Tensor) -> bool:
        """Whether :meth:`refusals` is empty; the tensors are asked first, what is installed last."""
        wanted = self.devices is None or all(x.device.type in self.devices for x in tensors)
        return wanted and all(x.dtype in self.dtypes for x in tensors) and not self.refusals(*tensors)

    def refusals(self, *tensors: torch.Tensor) -> list[str]:
        """Returns why this backend cannot run on these tensors; an empty list when it can."""
        reasons = []
        for x in tensors:
            if self.devices is not None and x.device.type not in self.devices:
                reasons.append(f"takes tensors on {' or '.join(self.devices)}, got {x.device.type}")
            if x.dtype not in self.dtypes:
                reasons.append(f"takes dtypes {', '.join(map(_short, self.dtypes))}, got {_short(x.dtype)}")
        return list(dict.fromkeys(reasons)) + list(_missing(self.missing)) + self.refuses(*tensors)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# What is installed does not change under a compiled graph, and looking it up cannot be traced. Of the backend
# only its function is given: the compiler of torch 2.10 takes no frozen dataclass for a constant.
@constant_in_graphs
def _missing(missing: Callable[[], list[str]]) -> tuple[str, ...]:
    return tuple(missing())


@dataclass
class Operator:
    """A public operator.

    Attributes:
        name: Its public name.
        backends: In the order in which ``auto`` prefers them.
        plain: Its form in torch's own operations (forward only), called as the backends are: for graphs that
            run where this package is not.
        cost: Takes what the backends take; tensors may be on the meta device.
    """

    name: str
    backends: dict[str, Backend]
    plain: Callable[..., Any]
    cost: Callable[..., Cost]
    announced: set[str] = field(default_factory=set)

    def custom_ops(self) -> list[Any]:
        """The torch operators (``torch.ops.LIBRARY.NAME``) that backends of this operator are."""
        names = [backend.custom_op.split("::") for backend in self.backends.values() if backend.custom_op]
        return [getattr(getattr(torch.ops, library), name) for library, name in names]

    def select(self, backend: str, *tensors: torch.Tensor) -> Callable[..., Any]:
        """Returns the implementation that runs on all tensors that the operator is given.

        ``auto`` takes the first backend that accepts them and logs each choice once. ``reference`` is there
        for checking and is never chosen by ``auto``.

        Raises:
            ValueError: Unknown backend name, or the named backend (with ``auto``: every backend) refuses the
                tensors.
        """
        if backend != "auto":
            if backend not in self.backends:
                raise ValueError(
                    f"{self.name}: unknown backend {backend!r}{_allowed(backend, ['auto', *self.backends])}"
                )
            reasons = self.backends[backend].refusals(*tensors)
            if reasons:
                raise ValueError(
                    f"{self.name}: backend {backend!r} cannot run: {'; '.join(reasons)}. "
                    "Use backend='auto', or see `python -m dtf.ops` for what is live here."
                )
            return self.backends[backend].run
        candidates = [candidate for candidate in self.backends.values() if candidate.name != "reference"]
        for candidate in candidates:
            if candidate.accepts(*tensors):
                # Logging cannot be traced; a compiled graph keeps its choice anyway.
                if not torch.compiler.is_compiling() and candidate.name not in self.announced:
                    self.announced.add(candidate.name)
                    log.info("%s: backend %r on %s", self.name, candidate.name, tensors[0].device.type)
                return candidate.run
        refused = [f"{candidate.name}: {'; '.join(candidate.refusals(*tensors))}" for candidate in candidates]
        raise ValueError(f"{self.name}: no backend can run. {' | '.join(refused)}")


OPERATORS: dict[str, Operator] = {}


def register(name: str, *backends: Backend, plain: Callable[..., Any], cost: Callable[..., Cost]) -> Operator:
    """Registers an operator; ``auto`` prefers ``backends`` in the given order. See :class:`Operator`."""
    assert name not in OPERATORS, f"operator {name} is registered twice"
    OPERATORS[name] = Operator(name, {backend.name: backend for backend in backends}, plain, cost)
    return OPERATORS[name]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns all torch operators of this package with their plain forms, for exported graphs.

    `torch.export` keeps the operators as single nodes. ``run_decompositions`` writes them out, after which
    ``torch.export.save`` and ``torch.onnx.export`` take the graph:

        program = torch.export.export(model.eval(), (video,))
        program = program.run_decompositions(decompositions())
    """
    return {packet.default: op.plain for op in OPERATORS.values() for packet in op.custom_ops()}


# The kernels convert float16 and bfloat16 by instructions that older devices lack.
_LEAST_CAPABILITY = {torch.float16: (5, 3), torch.bfloat16: (8, 0)}


def _lacks_conversion(x: torch.Tensor, *others: torch.Tensor) -> list[str]:
    needed = _LEAST_CAPABILITY.get(x.dtype)
    if needed is None or x.device.type != "cuda" or not torch.cuda.is_available():
        return []
    found = _capability(x.device.index)
    if found >= needed:
        return []
    return [
        f"{_short(x.dtype)} needs compute capability {needed[0]}.{needed[1]}, "
        f"{x.device} has {found[0]}.{found[1]}"
    ]


@constant_in_graphs
def _capability(device_index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def cupy_missing() -> list[str]:
    """Returns why CuPy kernels cannot run on this machine."""
    return list(runtime.missing())


def cupy_kernels(run: Callable[..., Any], custom_op: str) -> Backend:
    """Returns the ``cupy`` backend of an operator whose custom operator is ``run``, called ``custom_op``."""
    return Backend(
        "cupy",
        run,
        devices=("cuda",),
        missing=cupy_missing,
        refuses=_lacks_conversion,
        custom_op=custom_op,
    )


def _allowed(given: str, names: list[str]) -> str:
    return f"{nearest(given, names, repr) or ';'} Allowed: {', '.join(names)}"


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
            dtypes = ", ".join(map(_short, backend.dtypes))
            notes = [
                " or ".join(backend.devices) if backend.devices else "any device",
                dtypes,
                "double backward" if backend.double_backward else "backward",
                "deterministic" if backend.deterministic else "not deterministic",
            ]
            lines.append(f"  {backend.name:<10} live: {'; '.join(notes)}")
    return "\n".join(lines)
