"""Weights in one safetensors file that says what it holds: network, arguments, and how to apply it.

Nothing in such a file is executed on loading, and a network is rebuilt from the file alone.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dtf.models.network import VideoNetwork
from dtf.models.weights.rebuild import lay_out, read_json, rebuild

_FORMAT = "dtf-weights-1"


def save_weights(path: str | os.PathLike[str], model: VideoNetwork, metadata: Mapping[str, Any]) -> None:
    """Writes a network's weights and description to a safetensors file, atomically.

    A killed run leaves either the former file or the whole new one.

    Args:
        path: File to write; its folder must exist.
        model: Network made by :func:`dtf.models.create_model`, on any device.
        metadata: JSON data kept beside the weights, e.g. class names, sampling, mean and std.

    Raises:
        ValueError: The network was not made by ``create_model`` or was changed since, other than by a linear
            head for another number of classes; or the metadata is not JSON data.
        OSError: The file cannot be written.
    """
    if not model.name:
        raise ValueError("save_weights needs a network made by create_model: it has no name to rebuild it by")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    arguments = _arguments(model, state)
    try:
        texts = {
            "format": _FORMAT,
            "name": model.name,
            "arguments": json.dumps(arguments, allow_nan=False),
            "metadata": json.dumps(dict(metadata), allow_nan=False),
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save_weights: metadata must be JSON data (finite numbers, strings, lists): {error}"
        ) from error
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save_weights: the folder of {path} does not exist")
    # The final name appears only once the bytes are on disk. The process's own temporary name keeps two
    # writers apart.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        try:
            save_file(state, temporary, metadata=texts)
        except SafetensorError as error:
            # The library knows the number of the operating system's error, but says it in a text alone.
            number = re.search(r"os error (\d+)|code: (\d+)", str(error))
            if number is None:
                raise
            code = int(number.group(1) or number.group(2))
            raise OSError(code, os.strerror(code), str(path)) from error
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; weights get the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _arguments(model: VideoNetwork, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments that build this very network: its own, but for the classes of a head put in later.

    Raises:
        ValueError: There are none; the file could not be loaded.
    """
    shapes = {key: value.shape for key, value in state.items()}
    misfits = lay_out(model.name, model.arguments, shapes)
    if not misfits:
        return model.arguments
    classes = {shapes[key][0] for key in misfits if shapes.get(key)}
    if len(classes) == 1:
        arguments = {**model.arguments, "num_classes": classes.pop()}
        if not lay_out(model.name, arguments, shapes):
            return arguments
    raise ValueError(
        f"save_weights: {misfits[0]} is not as create_model({model.name!r}, **model.arguments) makes it, so "
        "load_weights could not build this network again: change networks by create_model's arguments, of a "
        "head only the number of classes, or keep the state_dict with torch.save"
    )


def load_weights(path: str | os.PathLike[str]) -> tuple[VideoNetwork, dict[str, Any]]:
    """Rebuilds a network from a file written by :func:`save_weights`.

    Args:
        path: The file.

    Returns:
        The network on the CPU in evaluation mode, and the metadata it was saved with.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a file, is damaged, or does not fit this version's network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            texts = file.metadata() or {}
            names = list(file.keys())
            if texts.get("format") != _FORMAT:
                raise ValueError(
                    f"{path} was not written by dtf.models.save_weights (its header has format "
                    f"{texts.get('format')!r}, expected {_FORMAT!r}); weights of an image backbone go to "
                    "create_model(pretrained=path)"
                )
            try:
                name, arguments = texts["name"], read_json(texts["arguments"])
                metadata = read_json(texts["metadata"])
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path}: damaged header: {error!r}") from error
            if not isinstance(arguments, dict) or not isinstance(metadata, dict):
                raise ValueError(f"{path}: damaged header: arguments and metadata must be JSON objects")
            # The shapes stand in the header: no tensor is read before it is known that it has a place.
            shapes = {key: file.get_slice(key).get_shape() for key in names}
            model = rebuild(path, name, arguments, shapes)
            state = {key: file.get_tensor(key) for key in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    model.load_state_dict(state)
    return model.eval(), metadata
