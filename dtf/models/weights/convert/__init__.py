"""State dicts trained with published code, converted to ours: a family says how, this does it.

Every entry is accounted for: converted, dead (the published network never uses it) with the reason, or a
fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dtf.layers.temporal import TemporalLayer
from dtf.models.network import VideoNetwork
from dtf.models.registry import architecture


@dataclass(frozen=True)
class Conversion:
    """How the published state dicts of a family are read.

    Attributes:
        translate: From (original name, our module) to our name; one that ours does not have is a fault.
        dead: From (original name, our names and tensors) to why the original never uses it, or ``None``.
        reshape: From (original tensor, ours) to the original in our shape, or ``None`` where that is unknown.
    """

    translate: Callable[[str, nn.Module], str]
    dead: Callable[[str, Mapping[str, Tensor]], str | None]
    reshape: Callable[[Tensor, Tensor], Tensor | None]


CONTROL = "networks without temporal layers"
"""Key of these."""

CONVERSIONS: dict[str, Conversion] = {}
"""Name of a family, or CONTROL -> conversion; filled by the families."""


@dataclass
class ConversionReport:
    """What a conversion did with each entry of the original state dict.

    Attributes:
        converted: Original name -> our name.
        dead: Original name -> why the original network never uses it.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} entries converted, {len(self.dead)} dead"]
        return "\n".join(lines + [f"  dead {name}: {why}" for name, why in self.dead.items()])


def convert_original_state_dict(
    original: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Converts weights that were trained with the code published for a family.

    Args:
        original: State dict of the published network (a ``module.`` prefix is removed), or of one of its
            layers.
        model: The same network made by :func:`dtf.models.create_model`, or a layer.

    Returns:
        state: Loads into ``model`` with ``strict=True``; its tensors share memory with ``original`` where
            they can.
        report: What became of each entry; entries the original never uses are listed with the reason.

    Raises:
        ValueError: ``model`` has no published counterpart, or entries are missing, unknown or of another
            shape; all of them are named.
    """
    conversion = CONVERSIONS.get(_family(model))
    if conversion is None:
        raise ValueError(
            "convert_original_state_dict takes a network or a layer of a family whose code was published "
            f"({', '.join(sorted(CONVERSIONS))}), got {getattr(model, 'name', '') or type(model).__name__}"
        )

    def translate(name: str) -> str:
        return conversion.translate(name, model)

    wanted = model.state_dict()
    report = ConversionReport()
    state: dict[str, Tensor] = {}
    problems = []
    for given, value in original.items():
        name = given.removeprefix("module.")
        dead = conversion.dead(name, wanted)
        if dead:
            report.dead[given] = dead
            continue
        ours = translate(name)
        if ours not in wanted:
            problems.append(f"unknown entry {given}")
            continue
        if ours in state:
            problems.append(f"{given} and another entry both become {ours}")
            continue
        reshaped = conversion.reshape(value, wanted[ours])
        if reshaped is None:
            problems.append(
                f"{given} has shape {tuple(value.shape)}, {ours} needs {tuple(wanted[ours].shape)}"
            )
            continue
        state[ours] = reshaped
        report.converted[given] = ours
    named = set(state) | {translate(name.removeprefix("module.")) for name in original}
    problems += [f"nothing for {ours}" for ours in wanted if ours not in named]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(
            f"the state dict does not fit {getattr(model, 'name', '') or type(model).__name__}: {shown}"
        )
    return state, report


def _family(model: nn.Module) -> str:
    """Key in :data:`CONVERSIONS` of a network or a layer; "" where there is none."""
    if isinstance(model, TemporalLayer):
        return model.family
    if isinstance(model, VideoNetwork) and model.name:
        family = architecture(model.name).family
        return CONTROL if family is None else family.name
    return ""
