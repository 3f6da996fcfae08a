"""ImageNet weights of a 2D backbone in a video network.

The stem's kernel is spread over the frames of a step (`dtf.models.stems`), a convolution that a temporal
layer stands for is handed to that layer, every other weight is taken as it is; the classifier and what is
new in temporal layers stay fresh.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dtf.layers.temporal import fresh_in, temporal_layers
from dtf.models.network import VideoNetwork
from dtf.models.weights.archive import load_archive

log = logging.getLogger(__name__)


def load_image_weights(
    model: VideoNetwork, pretrained: bool | str | os.PathLike[str], timm_name: str | None
) -> None:
    """Loads weights of a 2D image network into a video network's backbone.

    Args:
        model: The network.
        pretrained: ``True`` to take timm's weights (downloaded and cached by timm), else a local file.
        timm_name: timm's name of the weights; ``None`` where there are none.

    Raises:
        ValueError: There are no such weights, or they do not fit the network (each misfit is named).
        OSError: The download failed, or the file cannot be read.
    """
    if pretrained is not True:
        assert pretrained is not False
        source, state = str(pretrained), read_state_dict(pretrained)
    elif timm_name is None:
        raise ValueError(
            f"{model.name}: there are no ImageNet weights for it; use pretrained=False or a local file"
        )
    else:
        source = f"timm's {timm_name}"
        try:
            state = timm.create_model(timm_name, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{model.name}: could not get {source}: {error}\nTrain from scratch with pretrained=False, "
                "or give a local .safetensors or .pth file of the 2D network: pretrained=PATH"
            ) from error
    inflated = inflate(state, model, source)
    model.backbone.load_state_dict(inflated, strict=False)
    log.info("%s: %d tensors from %s", model.name, len(inflated), source)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors`` or ``.pth`` / ``.pt`` / ``.bin`` file; nothing is executed.

    A dict under ``model``, ``state_dict`` or ``model_state`` inside the file is taken as the weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_archive(path, legacy=True)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a readable weights file: {error}") from error
    for key in ("model", "state_dict", "model_state"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no dict of tensors")
    return dict(state)


def inflate(state: Mapping[str, Tensor], model: VideoNetwork, source: str) -> dict[str, Tensor]:
    """Turns the weights of a 2D image network (timm's or the original names) into those of a video backbone.

    Args:
        state: Weights of the 2D network; its stem sees 3 channels.
        model: The video network.
        source: Where ``state`` comes from, for messages.

    Returns:
        New state for ``model.backbone``, without its classifiers and what is new in its temporal layers.

    Raises:
        ValueError: A weight is missing, left over or of another shape; all of them are named.
    """
    backbone, heads = model.backbone, tuple(f"{name}." for name in model.classifiers)
    fresh = set(fresh_in(backbone))
    wanted = {
        key: value
        for key, value in backbone.state_dict().items()
        if not key.startswith(heads) and key not in fresh
    }
    result = {k: v for k, v in model.image_state(state).items() if not k.startswith(heads)}
    kernel = result.get(model.stem_weight)
    if kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 3:
        result[model.stem_weight] = model.stem.inflate(kernel)
    for prefix, layer in temporal_layers(backbone).items():
        own = {key: result.pop(key) for key in list(result) if key.startswith(f"{prefix}.")}
        taken = layer.from_image({key.removeprefix(f"{prefix}."): value for key, value in own.items()})
        result |= {f"{prefix}.{key}": value for key, value in taken.items()}
    check_state(model.name, source, result, wanted)
    return result


def check_state(name: str, source: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` that names what is missing, left over or of another shape in ``state``."""
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(f"{name}: {source} does not fit the backbone: {shown}")
