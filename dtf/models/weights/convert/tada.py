"""How state dicts trained with the code published for TAda are read: names, and kernels of frames.

TAda2D: conv2.res_1 is layer1.0, its convolutions a, b, c and the norms behind them are conv1, conv2, conv3
and bn1, bn2, bn3. Kernels that see one frame have an axis of time there, which folded frames do without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from dtf.models.network import VideoNetwork
from dtf.models.weights.convert import CONVERSIONS, Conversion

_BLOCK = re.compile(r"backbone\.conv([2-5])\.res_([1-9]\d*)\.(?:conv_branch\.)?(\w+)\.(.+)")
_PARTS = {
    "short_cut": "downsample.0",
    "short_cut_bn": "downsample.1",
    "a": "conv1",
    "a_bn": "bn1",
    "b": "conv2.conv",
    "b_rf": "conv2.rf",
    "b_bn": "bn2.norm",
    "b_avgpool_bn": "bn2.pool_norm",
    "c": "conv3",
    "c_bn": "bn3",
}
_OUTSIDE = {
    "backbone.conv1.a.": "backbone.conv1.",
    "backbone.conv1.a_bn.": "backbone.bn1.",
    "head.out.": "backbone.fc.",
}


def _dead(name: str, wanted: Mapping[str, Tensor]) -> None:
    """The original uses every entry."""


def _translate(name: str, model: nn.Module) -> str:
    if not isinstance(model, VideoNetwork):
        return name
    for theirs, ours in _OUTSIDE.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = _BLOCK.fullmatch(name)
    if found is None or found[3] not in _PARTS:
        return name
    return f"backbone.layer{int(found[1]) - 1}.{int(found[2]) - 1}.{_PARTS[found[3]]}.{found[4]}"


def _reshape(value: Tensor, wanted: Tensor) -> Tensor | None:
    if value.dim() == 5 and wanted.dim() == 4 and value.shape[2] == 1:
        value = value.squeeze(2)
    return value if value.shape == wanted.shape else None


CONVERSIONS["tada"] = Conversion(_translate, _dead, _reshape)
