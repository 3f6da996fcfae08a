"""How state dicts trained with the code published for TAda are read: names, and kernels of frames.

TAda2D: conv2.res_1 is layer1.0, its convolutions a, b, c and the norms behind them are conv1, conv2, conv3
and bn1, bn2, bn3. TAdaConvNeXtV2, TAdaFormer: names of the original ConvNeXt and of CLIP beside those of
the calibration. Kernels that see one frame have an axis of time there, which folded frames do without; a
stem's frames are channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed
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
_OUTSIDE = {"backbone.conv1.a.": "backbone.conv1.", "backbone.conv1.a_bn.": "backbone.bn1."}

# TAdaConvNeXtV2: patterns in a name, tried in order, and what each is here.
_STAGE = r"backbone\.stages\.(\d+)\.(\d+)\."
_CONVNEXT = {
    r"backbone\.downsample_layers\.0\.": "backbone.stem.",
    r"backbone\.downsample_layers\.(\d+)\.": r"backbone.stages.\1.downsample.",
    rf"{_STAGE}dwconv\.": r"backbone.stages.\1.blocks.\2.conv_dw.conv.",
    rf"{_STAGE}dwconv_rf\.": r"backbone.stages.\1.blocks.\2.conv_dw.rf.",
    rf"{_STAGE}norm\.": r"backbone.stages.\1.blocks.\2.norm.norm.",
    rf"{_STAGE}norm_avgpool\.": r"backbone.stages.\1.blocks.\2.norm.pool_norm.",
    rf"{_STAGE}pwconv": r"backbone.stages.\1.blocks.\2.mlp.fc",
    rf"{_STAGE}gamma": r"backbone.stages.\1.blocks.\2.gamma",
    r"backbone\.norm\.": "backbone.head.norm.",
}

# TAdaFormer, likewise.
_LAYER = r"backbone\.layers\.(\d+)\."
_VIT = {
    r"backbone\.class_embedding$": "backbone.cls_token",
    r"backbone\.positional_embedding$": "backbone.pos_embed",
    r"backbone\.conv1\.weight$": "backbone.patch_embed.proj.weight",
    r"backbone\.ln_pre\.": "backbone.norm_pre.",
    r"backbone\.ln_post\.": "backbone.norm.",
    rf"{_LAYER}ln_": r"backbone.blocks.\1.norm",
    rf"{_LAYER}attn\.in_proj_": r"backbone.blocks.\1.attn.qkv.",
    rf"{_LAYER}attn\.out_proj\.": r"backbone.blocks.\1.attn.proj.",
    rf"{_LAYER}mlp\.c_fc\.": r"backbone.blocks.\1.mlp.fc1.",
    rf"{_LAYER}mlp\.c_proj\.": r"backbone.blocks.\1.mlp.fc2.",
    _LAYER: r"backbone.blocks.\1.",
}


def _dead(name: str, wanted: Mapping[str, Tensor]) -> None:
    """The original uses every entry."""


def _translate(name: str, model: nn.Module) -> str:
    if not isinstance(model, VideoNetwork):
        return name
    for theirs, ours in _OUTSIDE.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if name.startswith("head.out."):
        return f"backbone.{model.classifier}.{name.removeprefix('head.out.')}"
    for pattern, ours in {**_CONVNEXT, **_VIT}.items():
        renamed, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return renamed
    found = _BLOCK.fullmatch(name)
    if found is None or found[3] not in _PARTS:
        return name
    return f"backbone.layer{int(found[1]) - 1}.{int(found[2]) - 1}.{_PARTS[found[3]]}.{found[4]}"


def _reshape(value: Tensor, wanted: Tensor) -> Tensor | None:
    if value.dim() == 5 and wanted.dim() == 4:
        value = value.flatten(1, 2)  # channel by channel, the frames of each
    if value.dim() == 5 and wanted.dim() == 2 and value.shape[2:] == (1, 1, 1):
        value = value.flatten(1)
    if wanted.dim() == 3 and wanted.shape[:2] == (1, 1):
        value = value.reshape(1, 1, -1)  # the class token
    elif value.dim() == 2 and wanted.dim() == 3:
        value = _positions(value, wanted.shape[1])
    return value if value.shape == wanted.shape else None


def _positions(table: Tensor, length: int) -> Tensor:
    """A table of a square's places (1 + places, C), the class token's first -> (1, length, C), resized."""
    sides = [math.isqrt(count - 1) for count in (len(table), length)]
    squares = [1 + side**2 for side in sides] == [len(table), length]
    resized = squares and sides[0] != sides[1]
    return resample_abs_pos_embed(table[None], [sides[1], sides[1]]) if resized else table[None]


CONVERSIONS["tada"] = Conversion(_translate, _dead, _reshape)
