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

import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import parse_options, run_command
from dtf.text import as_started, markup, nearest

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

OPTIONS = {"checkpoint": "", "format": "all", "output": "exported"}
NAMES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
TOLERANCE = 1e-4
"""Largest difference of a logit from the network's own, relative to its largest logit."""

OPSET = 20
IR_VERSION = 9
"""Of the ONNX file; onnxruntime reads both from 1.17 on."""

_CHECKED_CLIPS = 3  # then one of them alone: the graph was traced with two
_MOST_ONNX_BYTES = 1_900_000_000  # a protobuf file ends at 2 GB


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: of the file.
        num_bytes: its size.
        difference: largest one of its logits from the network's, relative to the largest logit.
        seconds: that writing and checking took.
    """

    path: Path
    num_bytes: int
    difference: float
    seconds: float


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    formats: Sequence[str] = tuple(NAMES),
    on_written: Callable[[Exported], None] | None = None,
) -> list[Exported]:
    """Write a trained network in other formats and check each file.

    Args:
        checkpoint: a .ckpt or .safetensors file.
        output: folder to write to; files of the same name are replaced once the new ones are right.
        formats: of "safetensors", "torch" and "onnx".
        on_written: called after each file.

    Raises:
        ValueError: the checkpoint cannot be used, a package is missing, the network cannot be expressed in a
            format, or a file does not compute what the network does.
        OSError: the folder cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if "onnx" in formats and missing:
        raise ValueError(
            f"format=onnx needs {', '.join(missing)}: pip install -e '.[export]', or leave ONNX out with "
            "format=torch or format=safetensors"
        )
    import torch

    from dtf.apply.graphs import ServedNetwork, describe, load_trained, served_settings
    from dtf.models import save_weights

    path = Path(checkpoint)
    if path.suffix in (".pt2", ".onnx"):
        raise ValueError(f"{path} is exported already; export from the .ckpt or .safetensors file")
    file = load_trained(path)
    network, data = file.network, file.data
    served = ServedNetwork(network, data["mean"], data["std"]).eval()
    description = describe(file)
    shape = (_CHECKED_CLIPS, int(data["clip_length"]), int(data["crop_px"]), int(data["crop_px"]), 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = served(clips)
    if not wanted.isfinite().all():
        raise ValueError(f"{path}: the network's own logits on random clips are not finite numbers")

    program: ExportedProgram | None = None
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in formats:
        begin = time.perf_counter()
        # In a folder of its own until it has proved right.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".exporting-") as scratch:
            target = Path(scratch, NAMES[kind])
            if kind == "safetensors":
                about = {"class_names": file.class_names, "data": served_settings(data)}
                save_weights(target, network, about | {"task": file.task, "activation": file.activation})
            else:
                program = program or trace(served, clips[:2])
                write = write_program if kind == "torch" else write_onnx
                write(target, program, description)
            difference = _check(target, clips, wanted)
            num_bytes = target.stat().st_size
            os.replace(target, folder / target.name)
        seconds = time.perf_counter() - begin
        written.append(Exported(folder / NAMES[kind], num_bytes, difference, seconds))
        if on_written is not None:
            on_written(written[-1])
    return written


def _check(target: Path, clips: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference of the logits of a file from the network's, of several clips and of one alone.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    from dtf.apply.graphs import open_classifier

    logits = open_classifier(target, device="cpu", trust=True).logits
    found = [logits(clips), logits(clips[:1])]
    difference = max(_difference(found[0], wanted), _difference(found[1], wanted[:1]))
    if not difference <= TOLERANCE:  # NaN is no match either
        raise ValueError(
            f"{target.name} is not kept: its logits on random clips differ from those of the network "
            f"by {difference:.1e} of the largest one, allowed are {TOLERANCE:.0e}"
        )
    return difference


def trace(served: torch.nn.Module, clips: torch.Tensor) -> ExportedProgram:
    """The network as a graph of torch's own operations, for any batch size.

    Args:
        served: a `ServedNetwork` in evaluation mode on the CPU.
        clips: (2, T, S, S, 3) uint8, any values.

    Raises:
        ValueError: the network does something that a graph cannot express.
    """
    import torch

    from dtf.ops.dispatch import decompositions

    batch_norm = torch.ops.aten._native_batch_norm_legit_no_training.default
    table = {**decompositions(), batch_norm: _matrix_norm}
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(served, (clips,), dynamic_shapes={"video": {0: batch}})
            program = program.run_decompositions(table)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"torch.export cannot take this network: {reason}") from error
    for node in program.graph.nodes:
        # Where each node comes from: paths of this machine, and most of the file's text.
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    program.example_inputs = None
    return program


def _matrix_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> Any:
    """The batch norm of a matrix, as temporal layers have it, by a difference and a product.

    onnxruntime up to 1.20 cannot load a batch norm behind a product of more than two dimensions.
    """
    if x.dim() != 2 or weight is not None or bias is not None:
        return NotImplemented
    empty = x.new_empty(0)
    return (x - mean) * (variance + eps).rsqrt(), empty, empty


def write_program(path: Path, program: ExportedProgram, description: dict[str, str]) -> None:
    """Save a graph with its description as a .pt2 archive (torch.export.save)."""
    import torch

    from dtf.apply.graphs import METADATA_FILE

    with warnings.catch_warnings():
        # Said of every weight in channels_last memory; that it is loaded rightly is checked by the caller.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(description, indent=1)})


def write_onnx(path: Path, program: ExportedProgram, description: dict[str, str]) -> None:
    """Save a graph with its description as an ONNX file.

    Raises:
        ValueError: the graph has an operation without an ONNX form, or weights of 2 GB.
    """
    import torch
    from torch.onnx.errors import OnnxExporterError

    try:
        exported = torch.onnx.export(
            program,
            input_names=["video"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or repr(cause)).splitlines()[0]
        raise ValueError(f"this network has no ONNX form: {reason}") from error
    assert exported is not None
    model = exported.model
    for node in model.graph:
        node.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(description)
    model.ir_version = IR_VERSION
    model.producer_name = "dtf"
    num_bytes = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if num_bytes > _MOST_ONNX_BYTES:
        # More would go to a second file, which a graph names by its path: such files are not opened here.
        raise ValueError(f"its weights have {num_bytes} bytes, an ONNX file ends at 2 GB: use another format")
    exported.save(path, external_data=False)


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    import torch

    scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / scale)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

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
