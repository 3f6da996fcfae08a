"""How state dicts trained with the code published for DDF are read: names stay what they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dtf.models.network import VideoNetwork
from dtf.models.weights.convert import CONVERSIONS, Conversion


def _dead(name: str, wanted: Mapping[str, Tensor]) -> None:
    """The original uses every entry."""


def _translate(name: str, model: nn.Module) -> str:
    return f"backbone.{name}" if isinstance(model, VideoNetwork) else name


def _reshape(value: Tensor, wanted: Tensor) -> Tensor | None:
    return value if value.shape == wanted.shape else None


CONVERSIONS["ddf"] = Conversion(_translate, _dead, _reshape)
