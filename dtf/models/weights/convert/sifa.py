"""How state dicts trained with the code published for SIFA are read.

Kernels that see one frame have an axis of time there, which folded frames do without; the stem's is folded
into its channels. What each Swin block declares and never uses is reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from dtf.models.network import VideoNetwork
from dtf.models.swin import VideoSwin
from dtf.models.weights.convert import CONVERSIONS, Conversion

_DEEP_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6"}
_DEEP_STEM["bn3"] = "bn1"
_RESNET_LAYERS = re.compile(r"(layer\d(?:_dual)?\.\d+)\.(conv_offset|fc1|fc2)\.")
_SWIN_STEP = re.compile(r"(layers\.\d+\.blocks\.\d+)\.(tda_norm|conv)\.(weight|bias)")


def _dead(name: str, wanted: Mapping[str, Tensor]) -> str | None:
    """Returns why the original never uses an entry, or ``None`` if it does."""
    if name.endswith("def_cor.weight"):
        return "constant 1/C"
    if name.endswith((".attn_mask", ".relative_position_index")):
        return "computed from sizes"
    if name.startswith("layer4_dual.") and name.endswith("conv_offset.weight"):
        # Of half as many steps: one, where the main branch has two or three.
        dual = f"backbone.{name.replace('conv_offset', 'sifa.conv_offset')}"
        if dual not in wanted and dual.replace("_dual", "") in wanted:
            return "offsets of a branch with one step, which has no next one to attend to"
    step = _SWIN_STEP.fullmatch(name)
    if step and step[2] == "conv" and f"backbone.{step[1]}.sifa.norm.weight" in wanted:
        return "convolution over time of a block that attends instead, never called"
    if step and step[2] == "tda_norm" and f"backbone.{step[1]}.sifa.conv.weight" in wanted:
        return "norm of a shifted block, which has a convolution over time instead, never called"
    return None


def _translate(name: str, model: nn.Module) -> str:
    if not isinstance(model, VideoNetwork):
        return name
    return f"backbone.{_swin(name) if isinstance(model, VideoSwin) else _resnet(name, model)}"


def _resnet(name: str, model: VideoNetwork) -> str:
    if isinstance(model.backbone.conv1, nn.Sequential):
        module, _, parameter = name.partition(".")
        name = f"{_DEEP_STEM.get(module, module)}.{parameter}"
    return _RESNET_LAYERS.sub(r"\1.sifa.\2.", name)


def _swin(name: str) -> str:
    if name.startswith("fc."):
        return f"head.{name}"
    step = _SWIN_STEP.fullmatch(name)
    if step:
        return f"{step[1]}.sifa.{step[2].removeprefix('tda_')}.{step[3]}"
    # timm merges patches at the start of a stage, the original at the end of the stage before.
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)


def _reshape(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Returns ``value`` in the shape of ``wanted`` where that is a known change of shape, else ``None``."""
    if value.dim() == 5 and wanted.dim() == 4:
        value = value.flatten(1, 2)  # convolution kernel (O, I, s, k, k)
    elif value.dim() == 4 and wanted.dim() == 4 and value.shape[2:] == (1, 3) and wanted.shape[2:] == (3, 1):
        value = value.transpose(2, 3)  # over time, on tokens x steps
    return value if value.shape == wanted.shape else None


CONVERSIONS["sifa"] = Conversion(_translate, _dead, _reshape)
