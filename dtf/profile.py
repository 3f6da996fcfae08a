"""What a network costs: parameters, multiply-adds, activations, memory, clips per second.

    python -m dtf.profile MODEL [clip_length=16] [image_size=224] [batch_size=1] [device=auto] [KEY=VALUE...]
    python -m dtf.profile all          the table of all networks, in Markdown

Networks in pocket size (FAMILY_tiny) are measured at what they are made for: clip_length=8 image_size=64
num_classes=10; image networks at clip_length=1 num_classes=1000. KEY is any argument of the network
(num_classes=400, temporal_stride=4, kernel_size=3, layers=[2,2,2,2], ...). Counts are those of one clip in
evaluation and are taken without computing anything; device=none leaves it at them. Speed and memory are
measured on the device, for inference and for a training step (forward, backward).

GFLOPs are given as the tables of the field have it: one multiply-add counts as one. Counted are convolutions,
matrix products and the operators of this package, so all products of a temporal filter: correlation,
aggregation, prediction of the filters, the transforms to frequencies and back, the mix over channels.
Element-wise work (normalisation, activation functions, softmax, applying the filter) is not. Activations are
the output elements of the operations counted.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from typing import Any

from dtf.apply.device import choose_device
from dtf.runs.options import run_command

MEASURE_SECONDS = 3.0
"""What the command spends on each of its two measurements."""


def parse(arguments: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Command-line arguments as (network, device, arguments of `build`).

    Raises:
        ValueError: no network, two networks, or something that is no setting.
    """
    names, device, settings = [], "auto", {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            if argument.startswith("-"):
                raise ValueError(f"there is no option {argument}; options are KEY=VALUE, see --help")
            names.append(argument)
        elif key == "device":
            device = value
        else:
            try:
                settings[key] = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                raise ValueError(f"{argument}: {value!r} is neither a number nor a list of numbers") from None
    if len(names) != 1:
        raise ValueError(
            f"give one network, or all: python -m dtf.profile MODEL; got {' '.join(names) or 'none'}"
        )
    if names == ["all"] and (settings or device != "auto"):
        raise ValueError("the table of all networks takes no settings: python -m dtf.profile all")
    return names[0], device, settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", lambda given: _run(*parse(given)), arguments)


def _run(name: str, device: str, settings: dict[str, Any]) -> int:
    import torch
    from rich.console import Console
    from rich.table import Table

    from dtf.models.cost import build, measure_cost, measure_speed, models_table

    if name == "all":
        print(models_table())
        return 0
    if device != "none":
        device = str(choose_device(device))
    # Whatever the batch, costs are those of one clip.
    network, clip = build(name, **{**settings, "batch_size": 1})
    cost = measure_cost(network, clip)
    console = Console(highlight=False)
    frames, height, width = clip.shape[2:]
    what = "picture" if frames == 1 else f"clip of {frames} frames"
    title = f"{name}: one {what} of {height} x {width} px, {network.arguments['num_classes']} classes"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for column in ("parameters (M)", "GFLOPs", "activations (M)"):
        table.add_column(column, justify="right")
    for part in (*cost.parts, cost):
        if part is cost:
            table.add_section()
        table.add_row(
            part.name or "all",
            f"{part.parameters / 1e6:.3f}",
            f"{part.macs / 1e9:.3f}",
            f"{part.activations / 1e6:.3f}",
        )
    console.print(table)
    console.print(
        "GFLOPs count a multiply-add as one, as papers do; additions and multiplications: "
        f"{2 * cost.macs / 1e9:.3f} G",
        soft_wrap=True,
    )
    if device == "none":
        return 0
    network, video = build(name, device, **settings)
    where = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads"
    )
    console.print(f"float32, batch {len(video)} on {where}, torch {torch.__version__}:")
    for training in (False, True):
        speed = measure_speed(network, video, training, MEASURE_SECONDS)
        peak = "" if speed.peak_bytes is None else f", at most {speed.peak_bytes / 2**30:.2f} GiB of memory"
        what = "forward and backward" if training else "inference"
        console.print(f"  {what}: {speed.clips_per_second:.2f} clips/s{peak}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
