"""Registry of networks: names, the plain-data arguments each takes, and construction by name."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dtf.models.network import VideoNetwork

log = logging.getLogger(__name__)

Builder = Callable[..., VideoNetwork]


@dataclass(frozen=True)
class Architecture:
    """A registered name.

    Attributes:
        build: Builder; its keyword arguments are the network's arguments.
        fixed: Arguments that make this name what it is (not overridable).
        defaults: Arguments a caller may override, with their values for this name.
        imagenet: Name of timm's ImageNet weights for the backbone; ``None`` where there are none.
        pocket: Whether it is a network in pocket size, made for the small clips of the motion data set.
    """

    build: Builder
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    imagenet: str | None
    pocket: bool = False


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(
    name: str, *, fixed: Mapping[str, Any], imagenet: str | None = None, pocket: bool = False, **defaults: Any
) -> Callable[[Builder], Builder]:
    """Registers a builder under ``name``.

    Args:
        name: The registered name; a second registration is refused.
        fixed: Arguments passed to the builder that a caller cannot override.
        imagenet: Name of timm's ImageNet weights for the backbone.
        pocket: Whether it is a network in pocket size.
        defaults: Values for this name that replace the builder's own defaults.
    """

    def decorate(build: Builder) -> Builder:
        if name in _ARCHITECTURES:
            raise ValueError(f"model {name!r} is already registered; choose another name")
        own = {
            parameter.name: parameter.default
            for parameter in inspect.signature(build).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        }
        # An operator's arguments would have no effect on a network without it.
        without = () if fixed.get("temporal_filter", True) else ("kernel_size", "filter_groups")
        allowed = {key: value for key, value in own.items() if key not in fixed and key not in without}
        unknown = sorted(set(defaults) - set(allowed))
        assert not unknown, f"{name}: builder {build.__name__} takes no {unknown}"
        _ARCHITECTURES[name] = Architecture(build, dict(fixed), {**allowed, **defaults}, imagenet, pocket)
        return build

    return decorate


def list_models() -> list[str]:
    """Returns the registered names, sorted."""
    return sorted(_ARCHITECTURES)


def nearest(given: str, names: list[str]) -> str:
    """Returns the part of an error message that leads from a wrong name to the right one."""
    near = get_close_matches(given, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}Allowed: {', '.join(names)}"


def architecture(name: str) -> Architecture:
    """Returns the registered entry; ``ValueError`` with the nearest names if there is none."""
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; {nearest(name, list_models())}")
    return _ARCHITECTURES[name]


def create_model(
    name: str,
    num_classes: int = 400,
    clip_length: int = 16,
    temporal_stride: int | None = None,
    pretrained: bool | str = False,
    **overrides: Any,
) -> VideoNetwork:
    """Builds a registered network.

    Args:
        name: One of :func:`list_models`.
        num_classes: Length of the logits.
        clip_length: Frames per clip; a multiple of ``temporal_stride``.
        temporal_stride: Frames that the stem joins into one step; ``None`` for the architecture's own (4, and
            1 for ``*_tiny``, whose stem must be blind to motion). Networks called ``ptv_*`` have none.
        pretrained: ``True`` loads timm's ImageNet weights into the backbone (downloaded once); a path loads a
            local ``.safetensors`` or ``.pth`` file of a 2D network instead. The classifier and the filter
            blocks stay fresh. ``ptv_*``: PyTorchVideo's Kinetics-400 weights, or a local copy of them.
        overrides: Plain data: ``layers``, ``widths`` (ResNet), ``embed_dim``, ``depths``, ``num_heads``,
            ``window_size``, ``image_size`` (Swin), ``dropout``, ``drop_path_rate``, and with temporal filters
            ``kernel_size``, ``filter_groups``. Those of ``ptv_*`` stand in :mod:`dtf.models.pytorchvideo`.

    Returns:
        A network (B, 3, clip_length, H, W) -> (B, num_classes) with the attributes ``name`` and
        ``arguments``: ``create_model(model.name, **model.arguments)`` builds it again, without pretrained
        weights.

    Raises:
        ValueError: Unknown name or override (with the nearest ones), values that do not fit together, weights
            that do not fit the network.
        OSError: The ImageNet weights could not be downloaded, or the file cannot be read.
    """
    entry = architecture(name)
    allowed = ["num_classes", "clip_length", *entry.defaults]
    if temporal_stride is not None:
        overrides["temporal_stride"] = temporal_stride
    for key in overrides:
        if key not in allowed:
            raise ValueError(f"{name}: unknown argument {key!r}; {nearest(key, sorted(set(allowed)))}")
    arguments: dict[str, Any] = {**entry.defaults, "num_classes": num_classes, "clip_length": clip_length}
    arguments.update(overrides)
    arguments = {key: plain(name, key, value) for key, value in arguments.items()}
    problems = [_problem(key, value, entry.defaults[key]) for key, value in arguments.items()]
    if any(problems):
        raise ValueError(f"{name}: {'; '.join(filter(None, problems))}")
    if arguments["clip_length"] % arguments.get("temporal_stride", 1):
        raise ValueError(
            f"{name}: clip_length must be a multiple of temporal_stride, got {arguments['clip_length']} and "
            f"{arguments['temporal_stride']}"
        )
    model = entry.build(**entry.fixed, **arguments)
    model.name = name
    model.arguments = arguments
    if pretrained is not False:
        model.load_pretrained(pretrained, entry.imagenet)
    return model


def _problem(key: str, value: Any, default: Any) -> str | None:
    """Returns what is wrong with an argument, judged by its default's type; ``None`` if nothing is."""

    def positive(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= 1

    if key.endswith("_factor"):
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return None
        return f"{key} must be a positive number, got {value!r}"
    if isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
            return None
        return f"{key} must be a number from 0 up to but not including 1, got {value!r}"
    if isinstance(default, list | tuple):
        if isinstance(value, list) and value and all(map(positive, value)):
            return None
        return f"{key} must be a list of positive integers like {list(default)}, got {value!r}"
    pair = key == "image_size" and isinstance(value, list) and len(value) == 2 and all(map(positive, value))
    if pair or positive(value):
        return None
    return f"{key} must be a positive integer{' or two' if key == 'image_size' else ''}, got {value!r}"


def plain(name: str, key: str, value: Any) -> Any:
    """Returns ``value`` as JSON data (sequences become lists), so that a config or a file can state it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # A config's own sequence type is no list; whatever else can be iterated, a mapping cannot be meant.
    if hasattr(value, "__iter__") and not isinstance(value, Mapping):
        return [plain(name, key, item) for item in value]
    raise ValueError(f"{name}: {key} must be plain data (numbers, strings, sequences of them), got {value!r}")
