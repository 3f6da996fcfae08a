"""The seam between backbones and families of temporal layers: nobody else knows a family.

A family registers itself under a name (:func:`register_family`), with the options that it takes and a
function that builds its layer for a place in a backbone, or declines the place. A backbone offers its
places, runs what it was given on folded frames, and asks the layer, never its class: which of its
parameters and norms image weights do not fill, and what it did with a clip.

Letters: B clips, C channels, T steps, H x W pixels; folded frames are (B*T, C, H, W), the steps of a clip
following each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dtf.layers.options import Options

Slot = Literal[
    "convolution",
    "norm",
    "after_convolution",
    "after_activation",
    "residual",
    "before_attention",
    "after_attention",
]
"""Where within a block: in the place of its spatial convolution; in that of the norm behind it; between the
two; behind norm and activation; behind its last norm, ahead of the shortcut; ahead of the attention of a
transformer's block; between its attention and its MLP."""


@dataclass(frozen=True)
class Place:
    """A place in a backbone where a temporal layer may stand.

    Attributes:
        slot: Where in its block.
        channels: C there, of what the layer gives.
        num_steps: T there.
        stage: Of the backbone, counted from 0.
        block: Within the stage, counted from 0.
        suffix: Of the layer's name, in a block that has several places of one slot.
        shifted: Whether the block's attention works in shifted windows.
        replaces: Name of the block's module in whose place the layer would stand, and which name it would
            have, so that image weights of that name reach :meth:`TemporalLayer.from_image`; "": none, the
            layer is added.
        convolution: That module where it is a convolution, whose widths, stride and padding the layer keeps.
        norm: That module where it is a norm.
        drop_path_rate: With what probability the block drops what it adds to a clip.
    """

    slot: Slot
    channels: int
    num_steps: int
    stage: int
    block: int
    suffix: str = ""
    shifted: bool = False
    replaces: str = ""
    convolution: nn.Conv2d | None = None
    norm: nn.Module | None = None
    drop_path_rate: float = 0.0


@dataclass(frozen=True)
class Looks:
    """Where pixels of each step of clips but the last looked in the next step: at N places each.

    Attributes:
        displacement: (B, T - 1, N, 2, H, W), rows and columns from the pixel to the place, in pixels of the
            layer.
        weights: (B, T - 1, N, H, W), how much the place counted, of either sign.

    Raises:
        ValueError: The sizes differ.
    """

    displacement: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        wanted = (*self.weights.shape[:3], 2, *self.weights.shape[3:])
        if self.displacement.shape != wanted:
            raise ValueError(f"Looks: displacement must be {wanted}, got {tuple(self.displacement.shape)}")

    def mean(self) -> Tensor:
        """(B, T - 1, 2, H, W): the mean displacement, weighted with how much each place counted."""
        share = self.weights.abs()
        share = share / share.sum(dim=2, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return (self.displacement * share.unsqueeze(3)).sum(dim=2)


@dataclass(frozen=True)
class Kernels:
    """Filters that a layer predicted for clips: of each pixel, and of each channel.

    Attributes:
        by_pixel: (B, T, G, K, K, H, W), G filters of each pixel of what the layer gives.
        by_channel: (B, T, C, K, K).

    Raises:
        ValueError: Clips, steps or sides of the filters differ.
    """

    by_pixel: Tensor
    by_channel: Tensor

    def __post_init__(self) -> None:
        pixel, channel = self.by_pixel.shape, self.by_channel.shape
        if (len(pixel), len(channel)) != (7, 5) or (*pixel[:2], *pixel[3:5]) != (*channel[:2], *channel[3:]):
            raise ValueError(
                f"Kernels: by_pixel (B, T, G, K, K, H, W) and by_channel (B, T, C, K, K) must fit, "
                f"got {tuple(pixel)} and {tuple(channel)}"
            )


@dataclass(frozen=True)
class Maps:
    """What a layer did with clips, as maps over their pixels.

    Attributes:
        over: What the maps of a clip are told apart by, for titles and names of curves: "frequencies",
            "offsets", "calibration", ...
        subject: What they show, for a title.
        values: (B, L, H, W) >= 0, L maps of each clip: energies, whose square roots are drawn.
        labels: L texts, no two alike.
        per_clip: Whether map l is that of l cycles per clip, which have a frequency in the clip's own time.
        looks: Where in the next step each pixel looked, of a layer that does.
        calibration: (B, T, C), what each channel of each step's kernel is multiplied by, of a layer that
            does; 1 changes nothing.
        kernels: The filters that the layer predicted, of a layer that does.

    Raises:
        ValueError: The labels are not L different ones.
    """

    over: str
    subject: str
    values: Tensor
    labels: tuple[str, ...]
    per_clip: bool = False
    looks: Looks | None = None
    calibration: Tensor | None = None
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        if not len(self.labels) == len(set(self.labels)) == self.values.shape[1]:
            raise ValueError(f"Maps: {self.values.shape[1]} maps need as many labels, got {self.labels}")

    def label(self, index: int, clip_seconds: float) -> str:
        """A map's text, for a clip of so many seconds (0: unknown): "2 per clip (1.5 Hz)" for 4/3 seconds."""
        text = self.labels[index]
        if not (self.per_clip and index and clip_seconds):
            return text
        return f"{text} ({index / clip_seconds:.2g} Hz)"


class TemporalLayer(nn.Module):
    """A layer (B, C, T, H, W) -> same shape, or in the place of a convolution with its stride and width.

    A family's layers are subclasses. What they do not define holds for a layer that is all new: image weights
    fill nothing of it, also where they have some for the module that it stands for.

    Attributes:
        family: Registered name of its family.
    """

    family: str = ""

    def on_frames(self, frames: Tensor, num_steps: int) -> Tensor:
        """(B*T, C, H, W) in any memory layout, channels_last for choice -> the layer's output, folded."""
        # Frames in channels_last make this a channels_last_3d clip: both reshapes are views.
        clip = frames.unflatten(0, (-1, num_steps)).transpose(1, 2)
        return self(clip).transpose(1, 2).flatten(0, 1)

    def fresh_names(self) -> set[str]:
        """Names in its state dict that image weights do not fill."""
        return set(self.state_dict())

    def fresh_norms(self) -> list[nn.Module]:
        """Its batch norms whose statistics image weights do not fill."""
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From the image weights of the module in whose place it stands to its own, under its own names."""
        return {}

    def explain(self, x: Tensor) -> Maps | None:
        """What the layer does with a clip (B, C, T, H, W), in evaluation mode; None: nothing to show."""
        return None

    def watched(self) -> dict[str, Tensor]:
        """Parameters whose distribution is worth a curve, by a short name."""
        return {}


Builder = Callable[[Any, Place], TemporalLayer | None]


@dataclass(frozen=True)
class Family:
    """A family of temporal layers.

    Attributes:
        name: Registered name; blocks hold the layer under it, so it is part of a weights file's names.
        options: Dataclass of what a layer takes, an :class:`Options`; "backend" in it is where a layer
            runs, not
            what it is, and is not stored with a network.
        build: From options and a place to the layer that stands there; None: no layer there.
    """

    name: str
    options: type[Options]
    build: Builder


FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Makes a family known by its name.

    Raises:
        ValueError: The name is taken.
    """
    if family.name in FAMILIES:
        raise ValueError(f"family {family.name!r} is already registered; choose another name")
    FAMILIES[family.name] = family
    return family


@dataclass(frozen=True)
class Temporal:
    """What a backbone is asked to carry: a family with its options."""

    family: Family
    options: Options

    def layer(self, place: Place) -> TemporalLayer | None:
        """The layer for a place; None: it stays empty."""
        return self.family.build(self.options, place)


class Slots(nn.Module):
    """Mixed into a backbone's blocks: holds the layers of a block by the slots that they fill.

    A layer's name in the block is that of the module that it replaces, or the family's with the suffix of its
    place.
    """

    num_steps: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._filled: dict[str, str] = {}

    def fill(self, temporal: Temporal, *places: Place) -> None:
        """Offer the family the block's places, in the order in which they are passed."""
        for place in places:
            layer = temporal.layer(place)
            if layer is not None:
                self.hold(temporal, place, layer)

    def hold(self, temporal: Temporal, place: Place, layer: TemporalLayer) -> None:
        """Take a layer that was built for a place of this block."""
        name = place.replaces or f"{temporal.family.name}{place.suffix}"
        there = getattr(self, name, None)
        assert (there is not None) == bool(place.replaces), f"two layers of a block are called {name}"
        setattr(self, name, layer)
        self.num_steps = place.num_steps
        if not place.replaces:
            self._filled[place.slot + place.suffix] = name

    def at(self, slot: str, frames: Tensor) -> Tensor:
        """Run what fills a slot (its name and suffix) on folded frames; an empty one changes nothing."""
        name = self._filled.get(slot)
        return frames if name is None else self.through(name, frames)

    def through(self, name: str, frames: Tensor) -> Tensor:
        """Run a module of the block, or the layer in its place, on folded frames."""
        module = getattr(self, name)
        if isinstance(module, TemporalLayer):
            return module.on_frames(frames, self.num_steps)
        return module(frames)


def temporal_layers(network: nn.Module) -> dict[str, TemporalLayer]:
    """The temporal layers of a network by their names in it."""
    return {name: module for name, module in network.named_modules() if isinstance(module, TemporalLayer)}


def layer_maps(network: nn.Module, video: Tensor) -> dict[str, Maps]:
    """What every temporal layer of a network did with clips (:meth:`TemporalLayer.explain`).

    The network runs once, in evaluation mode and without gradients; its training modes are restored.
    Nothing is added to it for other runs.

    Args:
        network: Any module with temporal layers in it, compiled or not.
        video: What the network takes: (B, 3, clip_length, H, W), normalised.

    Returns:
        {name of the layer in ``network.named_modules()``: its maps}, in the order in which the layers ran.
        Empty for a network without layers that have something to show.

    Raises:
        ValueError: The video does not fit the network.
    """
    found: dict[str, Maps] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, TemporalLayer)
            maps = layer.explain(inputs[0])
            if maps is not None:
                found[name] = maps

        return hook

    modes = {module: module.training for module in network.modules()}
    handles = [
        layer.register_forward_pre_hook(watch(name)) for name, layer in temporal_layers(network).items()
    ]
    try:
        # A compiled graph would not see the hooks.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network.eval()(video)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def fresh_in(network: nn.Module) -> Iterator[str]:
    """Names in a network's state dict that image weights do not fill, of all its temporal layers."""
    for prefix, layer in temporal_layers(network).items():
        for name in layer.fresh_names():
            yield f"{prefix}.{name}" if prefix else name
