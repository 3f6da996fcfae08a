"""What networks cost: counted operation by operation, measured on a device, in a table of all of them.

One multiply-add counts as one. Counted are convolutions, matrix products and what the operators of this
package say of themselves; element-wise work is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from dtf.models.heads import per_head
from dtf.models.network import VideoNetwork
from dtf.models.registry import architecture, create_model, list_models
from dtf.ops.dispatch import OPERATORS, Operator

OPTIONS = {"clip_length": 16, "image_size": 224, "batch_size": 1, "num_classes": 400}
SMALL = OPTIONS | {"clip_length": 8, "image_size": 64, "num_classes": 10}
"""What the networks in pocket size are made for: the motion data set."""
IMAGE = OPTIONS | {"clip_length": 1, "num_classes": 1000}
"""What image networks are made for: ImageNet."""


@dataclass(frozen=True)
class Cost:
    """What a module costs for one input.

    Attributes:
        name: of the module within the network, "" for the whole.
        parameters: trainable or not, each once.
        macs: multiply-adds.
        activations: output elements of all operations whose multiply-adds are counted.
        parts: costs of the stages, whose sum this is.
    """

    name: str
    parameters: int
    macs: int
    activations: int
    parts: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class Speed:
    """What was measured on a device.

    Attributes:
        clips_per_second: of the median repetition.
        peak_bytes: memory of the device at its fullest, weights included; None where it cannot be measured.
    """

    clips_per_second: float
    peak_bytes: int | None


def measure_cost(module: nn.Module, *inputs: torch.Tensor) -> Cost:
    """Count what one forward pass costs, in the mode (training or evaluation) that the module is in.

    On the meta device (`with torch.device("meta"): ...`) nothing is computed.

    Args:
        module: a network, a block, any module.
        inputs: what it takes.
    """
    _register_formulas()

    def outputs(*shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
        several = bool(out_shape) and not isinstance(out_shape[0], int)
        return sum(math.prod(shape) for shape in (out_shape if several else [out_shape]))

    # Two counters at once: the second one's formulas see the same operations.
    by_flops = FlopCounterMode(display=False)
    by_outputs = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(flop_registry, outputs))
    with torch.no_grad(), by_flops, by_outputs:
        module(*inputs)
    flops, activations = (
        {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
        for counter in (by_flops, by_outputs)
    )
    root = type(module).__name__

    def cost(name: str, part: nn.Module, parts: tuple[Cost, ...] = ()) -> Cost:
        key = f"{root}.{name}" if name else "Global"
        size = sum(p.numel() for p in part.parameters())
        return Cost(name, size, flops.get(key, 0) // 2, activations.get(key, 0), parts)

    parts = [cost(name, part) for name, part in _stages(module)]
    whole = cost("", module, tuple(part for part in parts if part.parameters or part.macs))
    # What the network does outside its stages, by itself.
    rest = [
        getattr(whole, field) - sum(getattr(part, field) for part in parts)
        for field in ("parameters", "macs", "activations")
    ]
    if any(rest):
        whole = cost("", module, (*whole.parts, Cost("(itself)", *rest)))
    return whole


def _register_formulas() -> None:
    """Tell torch what the operators cost by their own account."""

    def formula(operator: Operator) -> Callable[..., int]:
        return lambda *args, out_val=None, **kwargs: operator.cost(*args, **kwargs).flops

    for operator in OPERATORS.values():
        new = [op for op in operator.custom_ops() if op not in flop_registry]
        if new:
            register_flop_formula(new, get_raw=True)(formula(operator))


def _stages(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of a network; one that holds nearly all of it is replaced by its own children."""
    total = sum(p.numel() for p in module.parameters())
    for name, child in module.named_children():
        if any(True for _ in child.children()) and sum(p.numel() for p in child.parameters()) > 0.9 * total:
            yield from _stages(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def measure_speed(
    network: nn.Module, video: torch.Tensor, training: bool = False, seconds: float = 3.0
) -> Speed:
    """Measure how fast a network runs: the median of as many repetitions as fit the time, at least two.

    Args:
        network: on the device of `video`.
        video: (B, 3, T, H, W), normalised.
        training: forward and backward in training mode, instead of forward in evaluation mode.
        seconds: time to spend after one repetition to warm up.
    """
    device = video.device
    cuda = device.type == "cuda"
    network.train(training)
    labels = torch.zeros(len(video), dtype=torch.long, device=device)

    def once() -> float:
        begin = time.perf_counter()
        with nullcontext() if training else torch.no_grad():
            logits = network(video)
            if training:
                torch.stack([F.cross_entropy(head, labels) for head in per_head(logits)]).sum().backward()
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    # The first pass chooses kernels; the second of a training step has its gradients to add to.
    once()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        times.append(once())
    network.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated(device) if cuda else None
    return Speed(len(video) / sorted(times)[len(times) // 2], peak)


def build(name: str, device: str = "meta", **arguments: Any) -> tuple[VideoNetwork, torch.Tensor]:
    """A registered network in evaluation mode with a batch that fits it, on a device.

    Args:
        name: one of `list_models()`.
        device: where to make both; "meta" for counting alone.
        arguments: clip_length, image_size, batch_size, num_classes (what is not given: OPTIONS, SMALL for
            networks in pocket size, or IMAGE for image networks) and the network's own.

    Raises:
        ValueError: an unknown network or argument, or values that do not fit.
    """
    entry = architecture(name)
    arguments = {**(SMALL if entry.pocket else IMAGE if entry.image else OPTIONS), **arguments}
    batch_size, size = arguments.pop("batch_size"), arguments["image_size"]
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(n, int) and n >= 1 for n in (*sides, batch_size)):
        raise ValueError(
            "image_size must be a number of pixels (or [height,width]) and batch_size a number of clips, got "
            f"{size!r} and {batch_size!r}"
        )
    if "image_size" not in entry.defaults:
        del arguments["image_size"]
    with torch.device(device):
        network = create_model(name, **arguments).eval()
        video = torch.randn(batch_size, 3, arguments["clip_length"], *sides)
    return network, video


def models_table() -> str:
    """The table of all registered networks, in Markdown; counted anew, a second or two."""
    lines = [
        "| network | frames | pixels | parameters (M) | GFLOPs | activations (M) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in list_models():
        network, clip = build(name)
        cost = measure_cost(network, clip)
        lines.append(
            f"| `{name}` | {clip.shape[2]} | {clip.shape[-1]} "
            f"| {cost.parameters / 1e6:.2f} | {cost.macs / 1e9:.2f} | {cost.activations / 1e6:.1f} |"
        )
    return "\n".join(lines)
