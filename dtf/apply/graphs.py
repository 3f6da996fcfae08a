"""A trained network from any kind of file, as a function from uint8 clips to logits.

Four kinds of file say everything that applying them takes: `.ckpt` of train.py, `.safetensors` weights, and
`.pt2` (torch.export) and `.onnx` graphs of `python -m dtf.export`. The first two are read as plain data and
an ONNX graph is data for onnxruntime: none of these can run code. Loading a `.pt2` unpickles and may call any
Python function that the file names, so that is done only for a user who says that the file is trusted.

Shape letters: B clips, T frames, S side of the crop, C classes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtf.apply.device import DEVICES, choose_device
from dtf.apply.onnx_file import check_onnx
from dtf.data.clip_view import CLIP_KEYS
from dtf.models import VideoNetwork, load_weights
from dtf.models.weights.rebuild import read_json
from dtf.runs.checkpoint import Checkpoint, load_checkpoint
from dtf.runs.description import taken_activation, taken_data, taken_names, taken_task

FORMAT = "dtf-export-1"
GRAPHS = (".onnx", ".pt2")
_LARGEST_DESCRIPTION = 1 << 24
METADATA_FILE = "dtf.json"
"""The description in a `.pt2` archive; an ONNX graph has its entries as `metadata_props`."""

_ONNX_MISSING = "reading ONNX needs onnxruntime: pip install -e '.[export]' (or onnxruntime-gpu)"


class ServedNetwork(nn.Module):
    """A network with its normalisation: what is exported, and what predicts.

    Args:
        network: (B, 3, T, S, S) normalised float -> (B, C) logits.
        mean, std: of each colour, for values in 0..1.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.shift: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("shift", torch.tensor([255 * m for m in mean]).view(1, 3, 1, 1, 1))
        self.register_buffer("scale", torch.tensor([255 * s for s in std]).view(1, 3, 1, 1, 1))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, T, S, S, 3) uint8 RGB -> (B, C) float32 logits."""
        clips = video.permute(0, 4, 1, 2, 3).to(self.shift.dtype)
        return self.network((clips - self.shift) / self.scale).float()


@dataclass(frozen=True)
class Trained:
    """A trained network with what its file says.

    Attributes:
        network: on the CPU, in evaluation mode.
        class_names: C names of its outputs.
        data: data settings of training.
        task: the name of what it was trained for; None where the file does not say.
        activation: how outputs become scores, a name in `dtf.runs.description.ACTIVATIONS`.
    """

    network: VideoNetwork
    class_names: list[str]
    data: dict[str, Any]
    task: str | None
    activation: str


@dataclass(frozen=True)
class Classifier:
    """A trained network with what it takes to apply it.

    Attributes:
        logits: (B, T, S, S, 3) uint8 on the CPU -> (B, C) float32 on the CPU.
        class_names: C names.
        data: data settings of training (clip length, sampling, sizes, normalisation).
        device: where it runs.
        name: of the network.
        activation: how logits become scores, a name in `dtf.runs.description.ACTIVATIONS`.
        network: the network itself; None for an exported graph.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    class_names: list[str]
    data: dict[str, Any]
    device: torch.device
    name: str
    activation: str
    network: VideoNetwork | None = None


class ServedGraph(nn.Module):
    """An exported graph in the place of a network. It normalises by itself: its clips are uint8.

    Args:
        classifier: of a .onnx or .pt2 file.

    Attributes:
        name: of the network that was exported.
        data: data settings of training.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.name = classifier.name
        self.data = classifier.data
        self._logits = classifier.logits

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, S, S) uint8 RGB -> (B, C) float32 logits, on the same device."""
        return self._logits(video.permute(0, 2, 3, 4, 1).contiguous().cpu()).to(video.device)


def load_any(
    path: Path, device: str, trust: bool
) -> tuple[VideoNetwork | ServedGraph, list[str], dict[str, Any]]:
    """A network on the CPU, or a graph on a device; class names and data settings: from any kind of file.

    Args:
        path, device, trust: as in `open_classifier`.

    Raises:
        ValueError: as `open_classifier`.
    """
    if path.suffix not in GRAPHS:
        return load_network(path)
    classifier = open_classifier(path, device, trust)
    return ServedGraph(classifier), classifier.class_names, classifier.data


def fixed_settings(network: VideoNetwork | ServedGraph) -> dict[str, Any]:
    """The data settings that a network is made for; it takes no others."""
    if isinstance(network, ServedGraph):
        return {key: network.data[key] for key in ("clip_length", "crop_px", "mean", "std")}
    return {"clip_length": network.arguments["clip_length"]}


def read_data(path: Path) -> Mapping[str, Any]:
    """The data settings that are taken of a file. Nothing in it is run, whatever its kind.

    Raises:
        ValueError: the file is missing, damaged or not ours.
    """
    if path.suffix == ".safetensors":
        return load_network(path)[2]
    if path.suffix not in GRAPHS:
        return load_checkpoint(path, weights=False).data
    texts, data = _texts(path), None
    with suppress(KeyError, TypeError, ValueError):
        data = read_json(texts["data"])
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not say what it was trained on: not written by python -m dtf.export")
    return taken_data(path, data, [])


def read_task(path: Path) -> str | None:
    """The name of the task that a network was trained for; None where its file does not say.

    Raises:
        ValueError: the file is missing, damaged or not ours.
    """
    if path.suffix == ".safetensors":
        return taken_task(path, load_weights(path)[1].get("task"))
    if path.suffix in GRAPHS:
        return taken_task(path, _texts(path).get("task"))
    return _task_of(load_checkpoint(path, weights=False))


def _task_of(checkpoint: Checkpoint) -> str | None:
    task = checkpoint.config.get("task")
    return taken_task(checkpoint.path, task.get("name") if isinstance(task, Mapping) else task)


def _texts(path: Path) -> Mapping[str, Any]:
    """The description in a graph's file, which is not run; {} where it has none.

    Raises:
        ValueError: the file is missing, or no graph.
    """
    _check_file(path)
    if path.suffix == ".onnx":
        return onnx_session(path).get_modelmeta().custom_metadata_map
    found: Any = {}
    with suppress(ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(f"/extra/{METADATA_FILE}") and entry.file_size < _LARGEST_DESCRIPTION:
                found = read_json(archive.read(entry))
    return found if isinstance(found, Mapping) else {}


def open_classifier(path: Path, device: str = "auto", trust: bool = False) -> Classifier:
    """Load a trained network.

    Args:
        path: a .ckpt, .safetensors, .onnx or .pt2 file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        trust: whether a .pt2 file, which can run code, may be loaded.

    Raises:
        ValueError: the file is missing, damaged, not ours or not trusted, or a setting is wrong.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, device)
    if path.suffix == ".pt2":
        return _open_program(path, choose_device(device), trust)
    file = load_trained(path)
    place, network = choose_device(device), file.network
    served = ServedNetwork(network, file.data["mean"], file.data["std"]).to(place).eval()
    about = (file.class_names, file.data, place, network.name, file.activation)
    return Classifier(_on(served, place), *about, network)


def load_network(path: Path) -> tuple[VideoNetwork, list[str], dict[str, Any]]:
    """Network on the CPU, class names and data settings of a .ckpt or .safetensors file.

    Raises:
        ValueError: as `load_trained`.
    """
    file = load_trained(path)
    return file.network, file.class_names, file.data


def load_trained(path: Path) -> Trained:
    """What a .ckpt or .safetensors file holds.

    Raises:
        ValueError: the file is missing, damaged, or does not say all that it takes to apply it.
    """
    if path.suffix != ".safetensors":
        checkpoint = load_checkpoint(path)
        network, names, data = checkpoint.build_network(), checkpoint.class_names, checkpoint.data
        task, activation = _task_of(checkpoint), checkpoint.activation
    else:
        network, metadata = load_weights(path)
        missing = [key for key in ("class_names", "data") if key not in metadata]
        if missing:
            raise ValueError(
                f"{path} does not say its {' and '.join(missing)}: it was not written by train.py"
            )
        names, data = metadata["class_names"], metadata["data"]
        task = taken_task(path, metadata.get("task"))
        activation = taken_activation(path, metadata.get("activation"))
    names, data = check_description(path, names, data, network.arguments["num_classes"])
    return Trained(network.eval(), names, data, task, activation)


def check_description(
    path: Path, names: Any, data: Any, num_classes: int
) -> tuple[list[str], dict[str, Any]]:
    """Class names and data settings that a file gives, as far as they are taken (`dtf.runs.description`).

    Raises:
        ValueError: the file does not say how clips are made and what the classes are called.
    """
    names = taken_names(path, names, num_classes)
    data = taken_data(path, data, names)
    missing = [key for key in CLIP_KEYS if key not in data]
    if missing:
        raise ValueError(
            f"{path} does not say data.{', data.'.join(missing)}: it was not written by train.py"
        )
    return names, data


def served_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data settings that applying a network takes; nothing of where it was trained."""
    return {key: data[key] for key in (*CLIP_KEYS, "name", "test_views") if key in data}


def describe(file: Trained) -> dict[str, str]:
    """What an exported graph says about itself, as texts (JSON where a value is not one)."""
    network, class_names, data = file.network, file.class_names, file.data
    length, size = data["clip_length"], data["crop_px"]
    then = "as they are" if file.activation == "none" else f"before the {file.activation}"
    return {
        "format": FORMAT,
        "model": network.name,
        "arguments": json.dumps(network.arguments),
        "class_names": json.dumps(list(class_names)),
        "data": json.dumps(served_settings(data)),
        "input": f"video: uint8 (batch, {length} frames, {size}, {size}, 3 RGB), normalised inside",
        "output": f"logits: float32 (batch, {len(class_names)} classes), {then}",
        "activation": file.activation,
    } | ({} if file.task is None else {"task": file.task})


def _read_description(
    path: Path, texts: Mapping[str, str], num_classes: int
) -> tuple[list[str], dict[str, Any], str]:
    """Class names, data settings, activation: what `describe` wrote of a graph of `num_classes` logits."""
    if texts.get("format") != FORMAT:
        raise ValueError(
            f"{path} was not written by `python -m dtf.export` (format {texts.get('format')!r}, expected "
            f"{FORMAT!r})"
        )
    try:
        names, data = read_json(texts["class_names"]), read_json(texts["data"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged description: {error!r}") from error
    activation = taken_activation(path, texts.get("activation"))
    return *check_description(path, names, data, num_classes), activation


def _on(module: Callable[[torch.Tensor], torch.Tensor], place: torch.device) -> Any:
    def logits(video: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return module(video.to(place)).cpu()

    return logits


def _open_program(path: Path, place: torch.device, trust: bool) -> Classifier:
    _check_file(path)
    if not trust:
        raise ValueError(
            f"{path}: loading a .pt2 file can run code that it contains: add trust=true if you exported it "
            "yourself or trust its source; .onnx and .safetensors files cannot run code"
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .pt2 file, or a damaged one ({path.stat().st_size} bytes)")
    texts = {METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=texts)
    except (RuntimeError, KeyError, AssertionError, ValueError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{path} cannot be loaded with torch {torch.__version__}: {reason}") from error
    try:
        description = read_json(texts[METADATA_FILE] or "{}")
    except ValueError:
        description = {}
    [logits] = program.graph.output_node().args[0]
    names, data, activation = _read_description(path, description, logits.meta["val"].shape[-1])
    if place.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(place))
    name = str(description.get("model"))
    return Classifier(_on(program.module(), place), names, data, place, name, activation)


def _open_onnx(path: Path, device: str) -> Classifier:
    _check_file(path)
    session = onnx_session(path, device)
    metadata = session.get_modelmeta().custom_metadata_map
    shapes = [node.shape for node in session.get_outputs()]
    if len(shapes) != 1 or len(shapes[0] or ()) != 2:
        raise ValueError(f"{path}: its outputs are {shapes}, expected logits (batch, classes) alone")
    names, data, activation = _read_description(path, metadata, shapes[0][1])
    inputs = [(node.name, node.type, list(node.shape[1:])) for node in session.get_inputs()]
    expected = ("video", "tensor(uint8)", [data["clip_length"], data["crop_px"], data["crop_px"], 3])
    if inputs != [expected]:
        raise ValueError(f"{path}: its input is {inputs}, but its description asks for {[expected]}")

    def logits(video: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"video": video.numpy()})[0])

    on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"
    place = torch.device("cuda" if on_gpu else "cpu")
    return Classifier(logits, names, data, place, str(metadata.get("model")), activation)


def onnx_session(path: Path, device: str = "cpu") -> Any:
    """An `onnxruntime.InferenceSession` of a file.

    Raises:
        ValueError: onnxruntime is not installed or has no such device, or the file is no ONNX graph that
            holds all of its numbers itself.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ModuleNotFoundError:
        raise ValueError(_ONNX_MISSING) from None
    if not re.fullmatch(DEVICES, device, flags=re.ASCII):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not has_cuda:
        raise ValueError(f"device={device}: this onnxruntime has no CUDA: pip install onnxruntime-gpu")
    providers: list[Any] = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        index = int(device[5:] or 0) if device != "auto" else 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    check_onnx(path)
    failures: tuple[type[Exception], ...] = (
        *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel),
        *(state.NoSuchFile, state.NotImplemented, state.RuntimeException, RuntimeError),
    )
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except failures as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{path} is no ONNX graph that onnxruntime can run: {reason}") from error
    # Where CUDA's libraries are missing, onnxruntime warns and takes the CPU.
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ValueError(f"device={device}: onnxruntime {onnxruntime.__version__} could not start CUDA here")
    return session


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
