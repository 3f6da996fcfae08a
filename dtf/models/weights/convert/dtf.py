"""How state dicts trained with the code published for DTF are read, of its C2D controls too.

5-D convolution kernels of temporal extent 1 lose that dimension, the stem's temporal extent is folded into
its channels, the filter block's tensors are renamed and flattened, and entries that the published networks
declare but never use are reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from dtf.layers.dtf import DTFBlock
from dtf.models.swin import VideoSwin
from dtf.models.weights.convert import CONTROL, CONVERSIONS, Conversion

_BLOCK_NAMES = {
    "filter_g.weight": "filter_weight",
    "linear1.complex_weight": "mix_weight",
    "norm1.norm.running_mean": "norm.running_mean",
    "norm1.norm.running_var": "norm.running_var",
    "norm1.norm.num_batches_tracked": "norm.num_batches_tracked",
    "alpha1": "alpha",
    "bias": "bias",
}


def _dead(name: str, wanted: Mapping[str, Tensor]) -> str | None:
    """Returns why the original never uses an entry, or ``None`` if it does."""
    if re.search(r"(^|\.)weights_cor$", name):
        return "constant 1/C"
    if re.search(r"\.attn_mask$", name) or re.search(r"\.relative_position_index$", name):
        return "computed from sizes"
    swin = re.match(r"(layers\.\d+\.blocks\.\d+)\.(conv|dtf_block)\.", name)
    if swin and swin[2] == "conv":
        return "1x3 convolution that is never called"
    if swin and f"backbone.{swin[1]}.dtf.alpha" not in wanted:
        return "temporal filter of a shifted block (or of a network without filters) that is never called"
    return None


def _translate(name: str, model: nn.Module) -> str:
    if isinstance(model, DTFBlock):
        return _translate_block(name)
    return _translate_swin(name) if isinstance(model, VideoSwin) else _translate_resnet(name)


def _translate_block(name: str) -> str:
    return _BLOCK_NAMES.get(name, "")


def _translate_resnet(name: str) -> str:
    stage, separator, inner = name.partition(".dtf_blk.")
    if separator:
        return f"backbone.{stage}.dtf.{_translate_block(inner)}"
    return f"backbone.{name}"


def _translate_swin(name: str) -> str:
    stage, separator, inner = name.partition(".dtf_block.")
    if separator:
        return f"backbone.{stage}.dtf.{_translate_block(inner)}"
    if name.startswith("fc."):
        return f"backbone.head.{name}"
    # timm merges patches at the start of a stage, the original at the end of the stage before.
    moved = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    return f"backbone.{moved}"


def _reshape(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Returns ``value`` in the shape of ``wanted`` where that is a known change of shape, else ``None``."""
    if value.dim() == 5 and wanted.dim() == 4:
        value = value.flatten(1, 2)  # convolution kernel (O, I, s, k, k)
    elif value.dim() == 4 and wanted.dim() == 3 and value.shape[2:] == (1, 1):
        # 1x1 convolution of the filter predictor, input channel c*T + t
        if value.shape[1] == wanted.shape[0] * wanted.shape[2]:
            value = value.flatten(1).unflatten(1, (-1, wanted.shape[0])).permute(2, 0, 1)
    elif value.dim() == 5 and wanted.dim() == 1 and value.numel() == value.shape[1]:
        value = value.flatten()  # (1, C, 1, 1, 1)
    return value if value.shape == wanted.shape else None


CONVERSIONS["dtf"] = CONVERSIONS[CONTROL] = Conversion(_translate, _dead, _reshape)
