"""Writing a trained network in other formats, and the check of each file against the network."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from dtf.apply.graphs import (
    GRAPHS,
    METADATA_FILE,
    ServedNetwork,
    describe,
    load_trained,
    open_classifier,
    served_settings,
)
from dtf.models import save_weights
from dtf.ops.dispatch import decompositions

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
    path = Path(checkpoint)
    if path.suffix in GRAPHS:
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
    with warnings.catch_warnings():
        # Said of every weight in channels_last memory; that it is loaded rightly is checked by the caller.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(description, indent=1)})


def write_onnx(path: Path, program: ExportedProgram, description: dict[str, str]) -> None:
    """Save a graph with its description as an ONNX file.

    Raises:
        ValueError: the graph has an operation without an ONNX form, or weights of 2 GB.
    """
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
    scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / scale)
