"""State dicts trained with the code published for DTF, converted to ours.

5-D convolution kernels of temporal extent 1 lose that dimension, the stem's temporal extent is folded into
its channels, the filter block's tensors are renamed and flattened, and entries that the published networks
declare but never use are reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from dtf.layers.dtf import DTFBlock
from dtf.models.network import VideoNetwork

_BLOCK_NAMES = {
    "filter_g.weight": "filter_weight",
    "linear1.complex_weight": "mix_weight",
    "norm1.norm.running_mean": "norm.running_mean",
    "norm1.norm.running_var": "norm.running_var",
    "norm1.norm.num_batches_tracked": "norm.num_batches_tracked",
    "alpha1": "alpha",
    "bias": "bias",
}


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
    """Converts weights trained with the published DTF code.

    Args:
        original: State dict of the published network (a ``module.`` prefix is removed), or of one of its
            blocks.
        model: The same network made by :func:`dtf.models.create_model` (ResNet with bottlenecks, Swin), or a
            :class:`DTFBlock`.

    Returns:
        state: Loads into ``model`` with ``strict=True``; its tensors share memory with ``original`` where
            they can.
        report: What became of each entry; entries the original never uses are listed with the reason.

    Raises:
        ValueError: ``model`` has no published counterpart, or entries are missing, unknown or of another
            shape; all of them are named.
    """
    if isinstance(model, DTFBlock):
        translate = _translate_block
    elif isinstance(model, VideoNetwork) and isinstance(model.backbone, ResNet):
        translate = _translate_resnet
    elif isinstance(model, VideoNetwork) and isinstance(model.backbone, SwinTransformer):
        translate = _translate_swin
    else:
        raise ValueError(
            f"convert_original_state_dict takes a DTFBlock or a dtf network, got {type(model).__name__}"
        )
    wanted = model.state_dict()
    report = ConversionReport()
    state: dict[str, Tensor] = {}
    problems = []
    for given, value in original.items():
        name = given.removeprefix("module.")
        dead = _dead(name, wanted)
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
        reshaped = _reshape(value, wanted[ours])
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
