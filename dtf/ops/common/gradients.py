"""Gradients of custom operators whose backward is an operator of the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def differentiate(operator: Any, backward: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    """Registers ``backward`` as the gradient of ``operator``; of its tensors only the inputs are kept.

    Args:
        operator: A ``torch.library.custom_op`` of one output.
        backward: Takes the output's gradient, then what ``operator`` takes; returns a gradient for each input
            that may be a tensor, in their order. That of an input left out (``None``) comes last and is
            dropped.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    def run(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [
            next(saved) if tensor else other for tensor, other in zip(ctx.is_tensor, ctx.others, strict=True)
        ]
        grads = backward(grad, *inputs)
        found = iter((grads,) if isinstance(grads, Tensor) else grads)
        return tuple(next(found) if tensor else None for tensor in ctx.is_tensor)

    operator.register_autograd(run, setup_context=save)
