"""What happens when the loss of a batch is not a finite number: the run stops, or the step is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dtf.errors import RunError
from dtf.files import replacing

log = logging.getLogger(__name__)

ACTIONS = ("stop", "skip")
MAX_IN_A_ROW = 10
LIST = "nonfinite_losses.txt"


class NonFiniteLoss:
    """Stops a run whose loss is not finite, or leaves the step out; in both cases names the videos.

    Only the loss counts: where the gradient scaler of fp16 leaves a step out because the gradients overflow,
    that is its daily work. All processes do the same: one whose loss is fine goes along.

    With "skip", the optimiser step that the batch takes part in is not taken, neither by weights nor by
    momentum, with all the batches that are accumulated for it; batch norm statistics are put back to what
    they were before the batch; the schedule of learning rates goes on. After ten such steps in a row the run
    stops. (Under fp16 the scaler sees the gradients of such a loss as well, and lowers its scale.)

    Args:
        action: "stop" or "skip".
        folder: of the run: each of the batches becomes a line in nonfinite_losses.txt there; None: it does
            not.

    Attributes:
        steps: steps left out since the run began.
        in_a_row: how many of them came last, without a sound one.

    Raises:
        ValueError: no such action.
    """

    def __init__(self, action: str = "stop", folder: Path | None = None) -> None:
        if action not in ACTIONS:
            raise ValueError(f"nonfinite must be one of {', '.join(ACTIONS)}, got {action!r}")
        self.action = action
        self.folder = folder
        self.steps = 0
        self.in_a_row = 0
        self._leave_out = self._restore = False
        self._lines: list[str] = []
        self._buffers: list[Any] = []
        self._kept: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"steps": self.steps, "in_a_row": self.in_a_row, "lines": list(self._lines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the run before."""
        self.steps, self.in_a_row = int(state["steps"]), int(state["in_a_row"])
        self._lines = [str(line) for line in state["lines"]]

    @torch.no_grad()
    def before_batch(self, network: nn.Module) -> None:
        """Remember the batch norm statistics."""
        if self.action == "stop":
            return
        # Few and small: one fused copy for all of them costs next to nothing.
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self._buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var)]
        if len(self._kept) != len(self._buffers):
            self._kept = [b.clone() for b in self._buffers]
        elif self._kept:
            torch._foreach_copy_(self._kept, self._buffers)

    def found(self, loss: torch.Tensor, where: str, videos: Callable[[], list[str]]) -> bool:
        """Whether the loss of this batch is not finite, on this process or another.

        Args:
            loss: of the batch, (), before the backward pass.
            where: the batch, in words.
            videos: paths of the batch's videos.

        Raises:
            RunError: it is not, and the run stops.
        """
        bad = ~loss.detach().isfinite().all()
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if together:
            anywhere = bad.float()
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        else:
            anywhere = bad
        # The one point where the CPU waits for the GPU: between two passes, where it has no work in store.
        if not anywhere.item():
            return False
        line = f"the loss is {loss.item()} in {where}; the videos were: {', '.join(videos())}" if bad else ""
        lines = [line]
        if together:
            lines = [""] * dist.get_world_size()
            dist.all_gather_object(lines, line)
        lines = [line for line in lines if line]
        first = not together or dist.get_rank() == 0
        self._lines += lines
        if first and self.folder is not None:
            with replacing(self.folder / LIST) as file:
                file.writelines(f"{line}\n" for line in self._lines)
        if self.action == "stop":
            raise RunError(
                f"{'; '.join(lines)}. Try a lower optim.lr, trainer.gradient_clip_val=1 or "
                "trainer.precision=32-true, or leave such steps out with nonfinite=skip; "
                "checkpoints are as they were"
            )
        if first:
            for line in lines:
                log.warning("left out a step: %s", line)
        self._leave_out = self._restore = True
        return True

    @torch.no_grad()
    def after_backward(self) -> None:
        """Put the batch norm statistics back. Not before: the backward pass still refers to them."""
        if self._restore and self._kept:
            torch._foreach_copy_(self._buffers, self._kept)
        self._restore = False

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients away from a step that is left out: no optimiser moves what has none.

        Raises:
            RunError: the tenth in a row.
        """
        if not self._leave_out:
            self.in_a_row = 0
            return
        self._leave_out = False
        self.steps += 1
        self.in_a_row += 1
        if self.in_a_row == MAX_IN_A_ROW:
            raise RunError(
                f"the loss was not finite in {MAX_IN_A_ROW} steps in a row, last: {self._lines[-1]}. "
                "Try a lower optim.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
