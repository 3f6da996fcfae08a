"""A temporal layer against the 1x3x3 convolution that it follows or replaces, at the shapes of ResNet-50.

    python benchmarks/layers.py [--family dtf] [--set combine=add] [--compile] [--frames 4] [--clips 2]
    [--device cpu] [--dtype float32] [--json FILE]

The family may be any that is registered. Rows: its layer (`torch` backend, or the one given), its plain
`reference` form (every neighbour stacked, its gradient left to autograd; of calibrated convolutions a kernel
for each frame, all frames as groups of one convolution; of deformed places torch's own sampler) and the
convolution on folded channels_last frames.
Every round measures all of them once, one after the other, so that other load on the machine falls on all
alike; printed are medians over the rounds and the median of the rounds' ratios. A speed is printed only after
the layer agreed with its reference on the same input.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dtf.models  # noqa: F401 (registers families)
from dtf.layers import SIFABlock
from dtf.layers.options import defaults_of
from dtf.layers.tada import RoutedConv2d
from dtf.layers.temporal import FAMILIES, Place, Slot, Temporal, TemporalLayer
from dtf.ops.dispatch import OPERATORS

# Channels x side of the 3x3 convolutions of ResNet-50 at 224 px.
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]
# Largest difference to the reference in units of its largest entry: the same arithmetic in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def commit() -> str:
    """Returns the commit of this checkout, with ``+`` where tracked files differ from it."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """Returns what a figure depends on besides the code: device, threads, versions, commit."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the time of one call in seconds, on the device where it runs."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def build(options: argparse.Namespace, backend: str, channels: int, conv: nn.Conv2d) -> TemporalLayer:
    """A family's layer in the first place at the convolution that it takes."""
    family = FAMILIES[options.family]
    where = {"backend": backend} if "backend" in defaults_of(family.options) else {}
    temporal = Temporal(family, family.options(**where, **options.set))
    # Some families leave the first stages or blocks out.
    for slot, stage, number in itertools.product(get_args(Slot), range(4), range(4)):
        replaced = conv if slot == "convolution" else None
        layer = temporal.layer(Place(slot, channels, options.frames, stage, number, convolution=replaced))
        if layer is not None:
            return layer
    raise SystemExit(f"family {options.family} stands in no place at a convolution")


class GridSampled(nn.Module):
    """Attention to deformed places by torch's sampler, one sample a tap, its gradient left to autograd."""

    def __init__(self, layer: SIFABlock) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        window = (self.layer.kernel_size, self.layer.dilation)
        places = self.layer.offsets(x)
        weights = OPERATORS["deformable_correlation"].plain(x, places, *window, 1)
        found = OPERATORS["deformable_aggregation"].plain(x, places, weights, *window, 1)
        return torch.cat((x[:, :, :-1] + found[:, :, 1:], x[:, :, -1:]), dim=2)


class KernelsOfFrames(nn.Module):
    """A calibrated convolution in the form in which it was published."""

    def __init__(self, layer: RoutedConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        conv, clips, steps = self.layer.conv, x.shape[0], x.shape[2]
        alpha = self.layer.rf(x).transpose(1, 2)[:, :, None]  # (B, T, 1, C, 1, 1)
        kernels = (conv.weight * alpha).flatten(0, 2)
        frames = x.transpose(1, 2).reshape(1, -1, *x.shape[3:])
        y = F.conv2d(frames, kernels, None, conv.stride[1:], conv.padding[1:], groups=clips * steps)
        return y.reshape(clips, steps, -1, *y.shape[2:]).transpose(1, 2)


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE of a layer's options."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def check(block: nn.Module, reference: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Raises ``SystemExit`` unless output and input gradient agree with the reference's."""
    results = []
    for module in (block, reference):
        y = module(x)
        results.append((y.detach(), *torch.autograd.grad(y, x, grad)))
    for name, ours, theirs in zip(("output", "gradient"), *results, strict=True):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= TOLERANCE[x.dtype]:
            raise SystemExit(f"{name} is {error:.1e} away from the reference for {tuple(x.shape)} {x.dtype}")


def measure(channels: int, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one shape; returns the row."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    clips = torch.randn(options.clips, channels, options.frames, side, side, device=device, dtype=dtype)
    clips = clips.to(memory_format=torch.channels_last_3d).requires_grad_()
    folded = clips.detach().transpose(1, 2).flatten(0, 1)
    folded = folded.contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    reference: nn.Module = build(options, "reference", channels, conv)
    for parameter in reference.parameters():
        if not parameter.any():  # a fresh layer may be the identity
            # Of what is predicted by many numbers, as large as each of them.
            nn.init.kaiming_normal_(
                parameter, nonlinearity="linear"
            ) if parameter.dim() > 1 else nn.init.normal_(parameter)
    block = build(options, options.backend, channels, conv)
    block.load_state_dict(reference.state_dict())
    if isinstance(reference, RoutedConv2d):
        reference = KernelsOfFrames(reference)
    if (
        isinstance(reference, SIFABlock)
        and reference.conv_offset is not None
        and not options.set.get("attention")
    ):
        reference = GridSampled(reference)
    if dtype == torch.float64:
        # Below float32, parameters stay in float32, as under autocast.
        block.double()
        reference.double()
    modules: dict[str, nn.Module] = {"block": block, "reference": reference, "conv": conv.to(dtype)}
    for module in modules.values():
        module.to(device)
        if options.compile and module is not reference:
            module.compile(fullgraph=True)
    grad = torch.randn_like(clips)
    grad_folded = torch.randn_like(folded)
    check(block, reference, clips, grad)

    work: dict[str, Callable[[], object]] = {}
    for name, module in modules.items():
        x, g = (folded, grad_folded) if name == "conv" else (clips, grad)
        inputs = (x, *module.parameters())
        work[f"{name} forward"] = lambda module=module, x=x: module(x)
        work[f"{name} forward+backward"] = lambda module=module, x=x, g=g, inputs=inputs: torch.autograd.grad(
            module(x), inputs, g
        )
    for call in work.values():
        for _ in range(options.warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds):
        for name, call in work.items():
            times[name].append(seconds(call, device))
    row: dict[str, Any] = {
        "channels": channels,
        "side": side,
        "frames": options.frames,
        "clips": options.clips,
    }
    for part in ("forward", "forward+backward"):
        base = times[f"conv {part}"]
        for name in modules:
            own = times[f"{name} {part}"]
            row[f"{name} {part} ms"] = statistics.median(own) * 1e3
            if name != "conv":
                ratios = [a / b for a, b in zip(own, base, strict=True)]
                row[f"{name} {part} ratio"] = statistics.median(ratios)
                # Quartiles of the rounds' ratios: how far to trust the figure.
                low, _, high = statistics.quantiles(ratios, n=4)
                row[f"{name} {part} spread"] = [low, high]
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="dtf", choices=sorted(FAMILIES))
    parser.add_argument(
        "--set", type=setting, nargs="+", default=[], metavar="KEY=VALUE", help="options of the layer"
    )
    parser.add_argument("--frames", type=int, default=4, help="T at the layer")
    parser.add_argument("--clips", type=int, default=2, help="clips per batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"])
    parser.add_argument("--backend", default="auto", choices=["auto", "torch", "cupy"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the layer and the convolution")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; 1 is least disturbed by other load"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    allowed = sorted(set(defaults_of(FAMILIES[options.family].options)) - {"backend"})
    if unknown := sorted(set(options.set) - set(allowed)):
        parser.error(f"--set {unknown[0]}: {options.family} has {', '.join(allowed)}")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, for a median and its spread")
    for name, least in (("frames", 1), ("clips", 1), ("threads", 1), ("warmup", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch {torch.__version__} sees no GPU here")
    if options.backend == "cupy" and not options.device.startswith("cuda"):
        parser.error(f"--backend cupy needs --device cuda, got {options.device}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    torch.set_num_threads(options.threads)
    facts = environment(torch.device(options.device))
    form = "compiled" if options.compile else "eager"
    name = " ".join([options.family, *(f"{key}={value}" for key, value in options.set.items())])
    print(f"{name} layer ({options.backend}, {form}) against the 1x3x3 convolution, {options.dtype}")
    print(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    print(
        f"{'C x H x T':>14} | {'forward: block  reference  conv  ratio':^42} | forward+backward, [quartiles]"
    )
    rows = []
    for channels, side in SHAPES:
        dtype = getattr(torch, options.dtype)
        # Parameters stay in float32. Nothing is kept from call to call.
        narrow = torch.autocast(options.device.split(":")[0], dtype, dtype.itemsize < 4, cache_enabled=False)
        with narrow:
            row = measure(channels, side, options)
        rows.append(row)
        cells = []
        for part in ("forward", "forward+backward"):
            values = [f"{row[f'{name} {part} ms']:8.2f}" for name in ("block", "reference", "conv")]
            cells.append(" ".join(values) + f" ms {row[f'block {part} ratio']:6.2f}")
        low, high = row["block forward+backward spread"]
        shape = f"{channels:>4} x {side:>2} x {options.frames:>2}"
        print(f"{shape} | {cells[0]} | {cells[1]} [{low:.2f} {high:.2f}]")
    summary = {}
    for name in ("block", "reference"):
        for part in ("forward", "forward+backward"):
            summary[f"{name} {part}"] = statistics.geometric_mean(row[f"{name} {part} ratio"] for row in rows)
    print("geometric mean of the ratios to the convolution:")
    for name, value in summary.items():
        print(f"  {name:<28} {value:.2f}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        text = json.dumps({**facts, **settings, "rows": rows, "geometric_mean_ratio": summary}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
