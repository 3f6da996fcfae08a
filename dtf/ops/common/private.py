"""What no public interface of torch gives at a price that `import dtf.ops` can pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Makes torch.compile call a function while it traces, and keep its result as a constant of the graph.

    Does what `torch.compiler.assume_constant_result` does, which takes 2.7 s to import the compiler. Seen to
    work with torch 2.10 to 2.15; tests/ops/test_dispatch.py compares it with the public function.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010 (mypy: functions have no such attribute)
    return function
