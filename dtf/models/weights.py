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

from dtf.models.network import VideoNetwork
from dtf.models.registry import create_model

_FORMAT = "dtf-weights-1"


def save_weights(path: str | os.PathLike[str], model: VideoNetwork, metadata: Mapping[str, Any]) -> None:
    """Writes a network's weights and description to a safetensors file, atomically.

    A killed run leaves either the former file or the whole new one.

    Args:
        path: File to write; its folder must exist.
        model: Network made by :func:`dtf.models.create_model`, on any device.
        metadata: JSON data kept beside the weights, e.g. class names, sampling, mean and std.

    Raises:
        ValueError: The network was not made by ``create_model``, or the metadata is not JSON data.
        OSError: The file cannot be written.
    """
    if not model.name:
        raise ValueError("save_weights needs a network made by create_model: it has no name to rebuild it by")
    try:
        texts = {
            "format": _FORMAT,
            "name": model.name,
            "arguments": json.dumps(model.arguments, allow_nan=False),
            "metadata": json.dumps(dict(metadata), allow_nan=False),
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save_weights: metadata must be JSON data (finite numbers, strings, lists): {error}"
        ) from error
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save_weights: the folder of {path} does not exist")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
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
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if texts.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was not written by dtf.models.save_weights (its header has format "
            f"{texts.get('format')!r}, expected {_FORMAT!r}); weights of an image backbone go to "
            "create_model(pretrained=path)"
        )
    try:
        name, arguments = texts["name"], json.loads(texts["arguments"])
        metadata = json.loads(texts["metadata"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged header: {error!r}") from error
    if not isinstance(arguments, dict) or not isinstance(metadata, dict):
        raise ValueError(f"{path}: damaged header: arguments and metadata must be JSON objects")
    if arguments.pop("pretrained", False) is not False:
        raise ValueError(f"{path}: damaged header: it must not ask for pretrained weights")
    try:
        model = create_model(name, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot rebuild {name!r} from it: {error}") from error
    expected = model.state_dict()
    misfits = sorted(
        key
        for key in {*expected, *state}
        if key not in expected or key not in state or expected[key].shape != state[key].shape
    )
    if misfits:
        raise ValueError(
            f"{path}: cannot rebuild {name!r} from it: {len(misfits)} tensors are missing, left over or of "
            f"another shape, first {misfits[0]}; it was written by another version, or its header was changed"
        )
    model.load_state_dict(state)
    return model.eval(), metadata
