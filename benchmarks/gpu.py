"""Operators, block and training steps at the shapes of DTF-ResNet-50 and DTF-Swin-B.

    python benchmarks/gpu.py --json FILE       # one GPU; ends within 8 minutes, names what it left out
    python benchmarks/gpu.py --quick           # small shapes, on a CPU too: shows that it runs

Needs torch, timm, CuPy and this repository. Every table compares within one run:

* block: with each backend, eager and (T = 4, bfloat16) compiled, against the 1x3x3 convolution it follows.
* steps: forward, backward and SGD step of a network and of its `c2d` control; `compiled-steps` (not among the
  tables of the plain command: compiling takes minutes) the same under torch.compile.
* operators: `reference` (plain torch), `torch`, `cupy`, and the floor: a device copy of the bytes that the
  operator must move, each clip and map read or written once. To torch.compile an operator is one opaque node,
  so it has no compiled form of its own.

A figure is printed only after the same form agreed with the reference on the same input. Times are medians
over rounds in which all forms run one after the other. float32 products use TF32, in the convolution too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from layers import TOLERANCE, environment, seconds
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.models import DTFBlock, create_model
from dtf.ops import frame_wise_aggregation, temporal_aggregation, temporal_correlation
from dtf.ops.dispatch import OPERATORS

# Row label: channels and side of the clips that blocks see at 224 px.
SHAPES = {
    "R50 stage 1": (64, 56),
    "R50 stage 2": (128, 28),
    "R50 stage 3": (256, 14),
    "R50 stage 4": (512, 7),
    "Swin-B stage 1": (128, 56),
    "Swin-B stage 2": (256, 28),
    "Swin-B stage 3": (512, 14),
    "Swin-B stage 4": (1024, 7),
}
QUICK_SHAPES = {"quick": (16, 7)}
CLIP_LENGTHS = (16, 32, 64)  # frames T at a block: a quarter
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Clips per batch at T = 4; halved as T doubles, so that every row moves the same bytes.
CLIPS = 32
NETWORKS = {"DTF-R50": ("dtf_resnet50", "c2d_resnet50"), "DTF-Swin-B": ("dtf_swin_base", "c2d_swin_base")}
CONV_TOLERANCE = 2  # backends may differ from each other by twice what each may from the reference


class Budget:
    """Seconds that are left; a table that would not fit is cut short, and says so."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.skipped: list[str] = []

    def allows(self, what: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.skipped.append(what)
        return False


def live(operator: str, x: Tensor) -> list[str]:
    """Returns the backends of an operator that run on ``x``, the reference first."""
    backends = OPERATORS[operator].backends
    return [name for name in ("reference", "torch", "cupy") if not backends[name].refusals(x)]


def medians(work: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Returns the median time of each form in milliseconds; rounds interleave the forms."""
    for call in work.values():
        for _ in range(2):
            call()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            times[name].append(seconds(call, device) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the largest difference in units of each tensor's largest entry; NaN counts as infinite."""
    largest = 0.0
    for mine, theirs in zip(ours, exact, strict=True):
        value = ((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()
        largest = max(largest, value if value == value else float("inf"))
    return largest


def clip(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Returns a clip (B, C, T, H, W) in the layout that networks hand to their blocks."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def copy_rate(device: torch.device, num_bytes: int) -> float:
    """Returns the bytes per second, read plus written, of a device copy of ``num_bytes``."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        times.append(seconds(lambda: target.copy_(source), device))
    return 2 * num_bytes / statistics.median(times[2:])


def operator_rows(
    options: argparse.Namespace, device: torch.device, budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yields a row per operator, shape, clip length and dtype."""
    rate = copy_rate(device, 2**20 if options.quick else 2**31)
    print(f"\noperators, ms; a device copy moves {rate / 1e12:.2f} TB/s (read + written)")
    runs: dict[str, Callable[..., Any]] = {
        "frame_wise_aggregation": frame_wise_aggregation,
        "temporal_correlation": temporal_correlation,
        "temporal_aggregation": temporal_aggregation,
    }
    for operator, (label, channels, side, frames, clips), (dtype_name, dtype) in cases(options, runs):
        name = f"{operator} {label} T={frames} {dtype_name}"
        if not budget.allows(name):
            continue
        x = clip((clips, channels, frames, side, side), dtype, device).requires_grad_()
        inputs = [x]
        if operator == "temporal_aggregation":
            maps = clip((clips, 9, frames, side, side), dtype, device, seed=1).softmax(dim=1)
            inputs.append(maps.detach().requires_grad_())
        run = runs[operator]
        forms = live(operator, x)
        grads: tuple[Tensor, ...] = ()
        exact: list[Tensor] = []
        work: dict[str, Callable[[], object]] = {}
        row: dict[str, Any] = {"table": "operators", "row": name, "shape": list(x.shape)}
        for backend in forms:
            outputs = as_tuple(run(*inputs, backend=backend))
            grads = grads or tuple(torch.randn_like(out) for out in outputs)
            results = [*outputs, *torch.autograd.grad(outputs, inputs, grads)]
            exact = exact or results
            difference = error(results, exact)
            assert difference <= CONV_TOLERANCE * TOLERANCE[dtype], (
                f"{name}: {backend} is {difference:.1e} off"
            )

            def forward(backend: str = backend, run: Any = run, inputs: Any = inputs) -> object:
                with torch.no_grad():
                    return run(*inputs, backend=backend)

            def both(
                backend: str = backend, run: Any = run, inputs: Any = inputs, grads: Any = grads
            ) -> object:
                return torch.autograd.grad(as_tuple(run(*inputs, backend=backend)), inputs, grads)

            work[f"{backend} forward"], work[f"{backend} both"] = forward, both
        del exact, results, outputs
        row |= medians(work, device, options.rounds)
        forward_bytes, backward_bytes = least_bytes(
            operator, x.numel(), x.numel() // channels * 9, dtype.itemsize
        )
        row["floor forward"] = forward_bytes / rate * 1e3
        row["floor both"] = (forward_bytes + backward_bytes) / rate * 1e3
        best = min(row[f"{form} forward"] for form in forms)
        row["share of copy bandwidth, forward"] = row["floor forward"] / best
        yield row


def least_bytes(operator: str, clip_entries: int, map_entries: int, itemsize: int) -> tuple[int, int]:
    """Returns the bytes that forward and backward must move: each tensor read or written once."""
    clips, maps = {
        # (clips, maps) moved: forward; backward.
        "temporal_correlation": ((1, 1), (2, 1)),
        "temporal_aggregation": ((2, 1), (3, 2)),
        "frame_wise_aggregation": ((2, 1), (3, 2)),
    }[operator]
    forward, backward = ((c * clip_entries + m * map_entries) * itemsize for c, m in (clips, maps))
    return forward, backward


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def cases(options: argparse.Namespace, names: Any) -> Iterator[tuple[str, tuple[Any, ...], tuple[str, Any]]]:
    """Yields (name, (label, C, side, T, clips), dtype), the rows that decide first."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    lengths = CLIP_LENGTHS[:1] if options.quick else CLIP_LENGTHS
    for name in names:
        for length in lengths:
            frames = length // 4
            clips = 2 if options.quick else CLIPS * 4 // frames
            for dtype in ("bfloat16", "float32", "float16"):
                # The middle length in bfloat16 alone, float16 at the shortest: time is limited.
                if (length == 32 and dtype != "bfloat16") or (length != 16 and dtype == "float16"):
                    continue
                for label, (channels, side) in shapes.items():
                    yield name, (label, channels, side, frames, clips), (dtype, DTYPES[dtype])


def block_rows(options: argparse.Namespace, device: torch.device, budget: Budget) -> Iterator[dict[str, Any]]:
    """Yields a row per shape, clip length and dtype: the block's forms and the convolution."""
    print("\nblock against the 1x3x3 convolution it follows, ms")
    for _, (label, channels, side, frames, clips), (dtype_name, dtype) in cases(options, ["block"]):
        name = f"block {label} T={frames} {dtype_name}"
        if not budget.allows(name):
            continue
        torch.compiler.reset()
        torch.manual_seed(0)
        x = clip((clips, channels, frames, side, side), dtype, device).requires_grad_()
        folded = x.detach().transpose(1, 2).flatten(0, 1).requires_grad_()
        grad = torch.randn_like(x)
        reference = DTFBlock(channels, frames, backend="reference")
        nn.init.normal_(reference.alpha)
        modules: dict[str, tuple[nn.Module, Tensor]] = {"reference": (reference, x)}
        for backend in live("frame_wise_aggregation", x)[1:]:
            for suffix in ("", " compiled"):
                block = DTFBlock(channels, frames, backend=backend)
                block.load_state_dict(reference.state_dict())
                modules[backend + suffix] = (block, x)
        for suffix in ("", " compiled"):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            modules["conv" + suffix] = (conv.to(memory_format=torch.channels_last), folded)
        exact: list[Tensor] = []
        work: dict[str, Callable[[], object]] = {}
        for form, (module, entry) in modules.items():
            module.to(device)
            if form.endswith("compiled"):
                # Compiling takes seconds for each form: where the target is set, in bfloat16.
                if options.no_compile or dtype != torch.bfloat16 or frames != CLIP_LENGTHS[0] // 4:
                    continue
                module.compile(fullgraph=True)
            upstream = grad.transpose(1, 2).flatten(0, 1) if entry is folded else grad

            # With gradients on, so that forward and both share one compiled graph.
            def forward(
                module: nn.Module = module, entry: Tensor = entry, dtype: torch.dtype = dtype
            ) -> Tensor:
                with cast(device, dtype):
                    return module(entry)

            def both(
                forward: Callable[[], Tensor] = forward,
                module: nn.Module = module,
                entry: Tensor = entry,
                upstream: Tensor = upstream,
            ) -> list[Tensor]:
                y = forward()
                return [y, *torch.autograd.grad(y, [entry, *module.parameters()], upstream)]

            if entry is x:
                results = both()
                exact = exact or results
                # TF32 keeps 10 bits.
                allowed = max(CONV_TOLERANCE * TOLERANCE[dtype], 5e-3)
                difference = error(results[:2], exact[:2])
                assert difference <= allowed, f"{name}: {form} is {difference:.1e} off"
                del results
            work[f"{form} forward"], work[f"{form} both"] = forward, both
        del exact
        row: dict[str, Any] = {"table": "block", "row": name, "shape": list(x.shape)} | medians(
            work, device, options.rounds
        )
        for part in ("forward", "both"):
            ours = [
                row[f"{form} {part}"] for form in modules if f"{form} {part}" in row and form[:4] != "conv"
            ]
            row[f"best ratio to conv, {part}"] = min(ours) / row[f"conv {part}"]
        yield row


def cast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def step_rows(
    options: argparse.Namespace, device: torch.device, budget: Budget, compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields a row per network, clip length and dtype: time, memory and clips per second of a step."""
    print(
        f"\ntraining steps{' compiled' if compiled else ''}: ms, peak MiB, clips/s, ratios to the c2d control"
    )
    networks = {"quick": ("dtf_tiny", "c2d_tiny")} if options.quick else NETWORKS
    side = 32 if options.quick else 224
    lengths = (4,) if options.quick else CLIP_LENGTHS
    for length in lengths:
        for dtype_name in ("bfloat16", "float32", "float16"):
            if (compiled or length != lengths[0]) and dtype_name != "bfloat16":
                continue
            for label, names in networks.items():
                clips = 2 if options.quick else 32 * 16 // length
                form = f"{label} {length} frames {dtype_name}{' compiled' if compiled else ''}"
                if not budget.allows(f"step {form}"):
                    continue
                row: dict[str, Any] = {"table": "steps", "row": form, "clips": clips}
                for role, name in zip(("dtf", "c2d"), names, strict=True):
                    row |= step(
                        role, name, length, clips, side, DTYPES[dtype_name], compiled, device, options
                    )
                row["ratio time"] = row["dtf ms"] / row["c2d ms"]
                if device.type == "cuda":
                    row["ratio memory"] = row["dtf MiB"] / row["c2d MiB"]
                yield row


def step(
    role: str,
    name: str,
    length: int,
    clips: int,
    side: int,
    dtype: torch.dtype,
    compiled: bool,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Measures the training step of one network."""
    gc.collect()
    torch.compiler.reset()
    torch.manual_seed(0)
    model = create_model(name, clip_length=length).to(device)
    if compiled:
        model.compile()
    video = torch.randn(clips, 3, length, side, side, device=device)
    label = torch.randint(400, (clips,), device=device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def run() -> None:
        with cast(device, dtype):
            loss = F.cross_entropy(model(video), label)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    milliseconds = medians({"step": run}, device, max(3, options.rounds // 2))["step"]
    result = {f"{role} ms": milliseconds, f"{role} clips/s": clips / milliseconds * 1e3}
    if device.type == "cuda":
        result[f"{role} MiB"] = torch.cuda.max_memory_allocated(device) / 2**20
    return result


def show(row: dict[str, Any]) -> None:
    cells = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
    print(f"{row['row']:<58} | " + " | ".join(cells), flush=True)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes: shows that it runs, measures nothing"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled forms out")
    parser.add_argument("--tables", nargs="+", default=["block", "steps", "operators"],
                        choices=["block", "steps", "operators", "compiled-steps"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budget-seconds", type=float, default=470.0, help="what does not fit is named")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type != "cuda" and not options.quick:
        parser.error(
            "full shapes need a CUDA device; --quick runs on a CPU, benchmarks/layers.py measures one"
        )
    torch.set_float32_matmul_precision("high")
    facts = environment(device)
    found = importlib.util.find_spec("cupy") is not None
    facts["cupy"] = importlib.import_module("cupy").__version__ if found else None
    print(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    rows = []
    # Each table has its share of the time: none starves the next.
    shares = {"block": 0.55, "steps": 0.25, "operators": 0.2, "compiled-steps": 1.0}
    tables = {
        "block": block_rows,
        "steps": step_rows,
        "operators": operator_rows,
        "compiled-steps": functools.partial(step_rows, compiled=True),
    }
    skipped = []
    total = sum(shares[name] for name in options.tables)
    for name in options.tables:
        budget = Budget(options.budget_seconds * shares[name] / total)
        for row in tables[name](options, device, budget):
            show(row)
            rows.append(row)
        skipped += budget.skipped
    if skipped:
        print(f"\nleft out for want of time ({len(skipped)}): " + "; ".join(skipped))
    report = {**facts, "rounds": options.rounds, "rows": rows, "left_out": skipped}
    if options.json:
        part = options.json.with_name(f".{options.json.name}.part")
        part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        part.replace(options.json)
    return report


if __name__ == "__main__":
    main()
