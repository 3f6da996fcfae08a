"""Registry of networks: names, the plain-data arguments each takes, and construction by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dtf.layers.options import Options, defaults_of
from dtf.layers.temporal import Family, Temporal
from dtf.models.network import VideoNetwork
from dtf.text import nearest
from dtf.values import is_integer

Build = Callable[[Any, int, int, Temporal | None], VideoNetwork]
Load = Callable[[VideoNetwork, bool | str | os.PathLike[str], str | None], None]

NOT_STORED = ("backend",)
"""Arguments that say where a network runs, not what it is."""


def _no_weights(
    model: VideoNetwork, pretrained: bool | str | os.PathLike[str], published: str | None
) -> None:
    raise ValueError(f"{model.name}: there are no published weights for it; use pretrained=False")


@dataclass(frozen=True)
class Backbone:
    """What networks of one kind are built by.

    Attributes:
        name: For people.
        options: Dataclass of its arguments.
        build: From (options, num_classes, clip_length, temporal) to a network.
        load: Loads published weights into (model, True or a file, name of the published ones).
    """

    name: str
    options: type[Options]
    build: Build
    load: Load = _no_weights


@dataclass(frozen=True)
class Architecture:
    """A registered name.

    Attributes:
        backbone: What it is built by.
        family: The temporal layers that it carries; ``None``: none.
        fixed: Arguments that make this name what it is (not overridable).
        defaults: Arguments a caller may override, with their values for this name.
        published: Name of the published weights for the backbone; ``None`` where there are none.
        pocket: Whether it is a network in pocket size, made for the small clips of the motion data set.
        image: Whether it is an image network, made for single frames and ImageNet's classes.
    """

    backbone: Backbone
    family: Family | None
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    published: str | None = None
    pocket: bool = False
    image: bool = False


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(
    name: str,
    backbone: Backbone,
    family: Family | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
    published: str | None = None,
    pocket: bool = False,
    image: bool = False,
    **defaults: Any,
) -> None:
    """Registers a network under ``name``.

    Args:
        name: The registered name; a second registration is refused.
        backbone: What it is built by.
        family: The temporal layers that it carries.
        fixed: Values of options that a caller cannot override.
        published: Name of the published weights for the backbone.
        pocket: Whether it is a network in pocket size.
        image: Whether it is an image network.
        defaults: Values for this name that replace the options' own defaults.
    """
    if name in _ARCHITECTURES:
        raise ValueError(f"model {name!r} is already registered; choose another name")
    fixed = dict(fixed or {})
    options = defaults_of(backbone.options) | (defaults_of(family.options) if family else {})
    unknown = sorted({*fixed, *defaults} - set(options))
    assert not unknown, f"{name}: backbone {backbone.name} takes no {unknown}"
    allowed = {key: value for key, value in options.items() if key not in fixed}
    own = {**allowed, **defaults}
    _ARCHITECTURES[name] = Architecture(backbone, family, fixed, own, published, pocket, image)


def list_models() -> list[str]:
    """Returns the registered names, sorted."""
    return sorted(_ARCHITECTURES)


def _allowed(given: str, names: list[str]) -> str:
    """Returns the part of an error message that leads from a wrong name to the right one."""
    return f"{nearest(given, names, repr, 3) or ';'} Allowed: {', '.join(names)}"


def architecture(name: str) -> Architecture:
    """Returns the registered entry; ``ValueError`` with the nearest names if there is none."""
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}{_allowed(name, list_models())}")
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
        pretrained: ``True`` loads the published image weights into the backbone (downloaded once); a path
            loads a
            local ``.safetensors`` or ``.pth`` file of a 2D network instead. The classifier and the temporal
            layers stay fresh. ``ptv_*``: PyTorchVideo's Kinetics-400 weights, or a local copy of them.
        overrides: Plain data: options of the backbone (for instance
            :class:`dtf.models.resnet.ResNetOptions`, :class:`dtf.models.swin.SwinOptions`) and of the
            family of temporal layers (:attr:`dtf.layers.temporal.Family.options`). ``backend`` chooses that
            of the operators.

    Returns:
        A network (B, 3, clip_length, H, W) -> (B, num_classes) with the attributes ``name`` and
        ``arguments``: ``create_model(model.name, **model.arguments)`` builds it again, without pretrained
        weights.

    Raises:
        ValueError: Unknown name or override (with the nearest ones), values that do not fit together, weights
            that do not fit the network.
        OSError: The published weights could not be downloaded, or the file cannot be read.
    """
    entry = architecture(name)
    allowed = ["num_classes", "clip_length", *entry.defaults]
    if temporal_stride is not None:
        overrides["temporal_stride"] = temporal_stride
    for key in overrides:
        if key not in allowed:
            raise ValueError(f"{name}: unknown argument {key!r}{_allowed(key, sorted(set(allowed)))}")
    arguments: dict[str, Any] = {**entry.defaults, "num_classes": num_classes, "clip_length": clip_length}
    arguments.update(overrides)
    arguments = {key: plain(name, key, value) for key, value in arguments.items()}
    values = {**entry.fixed, **arguments}
    problems = [
        f"{key} must be a positive integer, got {values[key]!r}"
        for key in ("num_classes", "clip_length")
        if not is_integer(values[key]) or values[key] < 1
    ]

    def take(options: type[Options]) -> Options | None:
        try:
            return options(**{key: values[key] for key in defaults_of(options)})
        except ValueError as error:
            problems.append(str(error))
            return None

    own = take(entry.backbone.options)
    of_family = None if entry.family is None else take(entry.family.options)
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    temporal = Temporal(entry.family, of_family) if entry.family and of_family else None
    model = entry.backbone.build(own, num_classes, clip_length, temporal)
    model.name = name
    model.arguments = {key: value for key, value in arguments.items() if key not in NOT_STORED}
    if pretrained is not False:
        entry.backbone.load(model, pretrained, entry.published)
    return model


def plain(name: str, key: str, value: Any) -> Any:
    """Returns ``value`` as JSON data (sequences become lists), so that a config or a file can state it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # A config's own sequence type is no list; whatever else can be iterated, a mapping cannot be meant.
    if hasattr(value, "__iter__") and not isinstance(value, Mapping):
        return [plain(name, key, item) for item in value]
    raise ValueError(f"{name}: {key} must be plain data (numbers, strings, sequences of them), got {value!r}")
