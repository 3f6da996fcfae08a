"""Write a trained network as files to deploy, each checked against the network right after writing.

    python -m dtf.export checkpoint=PATH [format=all|safetensors|torch|onnx] [output=exported]

`checkpoint` is a .ckpt of train.py or a .safetensors file. OUTPUT gets

    model.safetensors   weights and description; needs this package
    model.pt2           torch.export graph; needs torch alone: torch.export.load("model.pt2").module()
    model.onnx          ONNX graph; needs onnxruntime alone

Both graphs take `video`, uint8 (batch, frames, height, width, 3) RGB, any batch size, normalise it inside,
and return logits, float32 (batch, classes). All three say their classes, sampling and sizes, and any of them
alone serves `python -m dtf.predict VIDEO checkpoint=FILE`. A file whose logits on random clips are further
than 1e-4 of the largest logit from the network's own is an error and is not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dtf.runs.options import parse_options, run_command
from dtf.text import as_started, markup, nearest

OPTIONS = {"checkpoint": "", "format": "all", "output": "exported"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from dtf.apply.export import NAMES, OPSET, TOLERANCE, Exported, export

    rest, options = parse_options(arguments, OPTIONS)
    if rest:
        raise ValueError(f"{rest[0]}: not an option; python -m dtf.export checkpoint=PATH")
    if not options["checkpoint"]:
        raise ValueError("no checkpoint: add checkpoint=PATH, for example OUTPUT/checkpoints/best.ckpt")
    kinds = ("all", *NAMES)
    if options["format"] not in kinds:
        hint = nearest(options["format"], kinds)
        raise ValueError(f"there is no format={options['format']}{hint} (there are: {', '.join(kinds)})")
    formats = list(NAMES) if options["format"] == "all" else [options["format"]]

    console = Console(highlight=False)
    table = Table("file", "size", "difference", "seconds")

    def add(done: Exported) -> None:
        size = f"{done.num_bytes / 1e6:.1f} MB"
        table.add_row(markup(done.path.name), size, f"{done.difference:.1e}", f"{done.seconds:.1f}")

    try:
        export(options["checkpoint"], options["output"], formats, add)
    finally:
        if table.row_count:
            console.print(table)
    console.print(
        f"difference: of logits on random clips from the network's own, relative (allowed: {TOLERANCE:.0e})"
    )
    if "onnx" in formats:
        console.print(f"ONNX opset {OPSET}")
    best = NAMES["onnx" if "onnx" in formats else formats[0]]
    trust = " trust=true" if formats == ["torch"] else ""
    file = Path(options["output"], best)
    predict = as_started("python -m dtf.predict")
    console.print(f"try it: {predict} VIDEO checkpoint={markup(file)}{trust}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
