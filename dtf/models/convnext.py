"""timm's ConvNeXt on folded frames, with places for temporal layers at its depth-wise convolutions.

Letters: B clips, T steps, C channels, H x W pixels; folded frames are (B*T, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, checkpoint_filter_fn
from torch import Tensor, nn

from dtf.layers.options import Options, one_of, option, positive_integer, positive_integers, share
from dtf.layers.paths import DropPath
from dtf.layers.temporal import Place, Slots, Temporal
from dtf.models.network import VideoNetwork
from dtf.models.registry import Backbone
from dtf.models.stems import overlapping
from dtf.models.weights.images import load_image_weights

_LEAST_PX = 32  # stem and stages divide by so many


class TemporalConvNeXtBlock(Slots, ConvNeXtBlock):
    """timm's block with places at its convolution: of it, behind it, of its norm; drops paths by clips."""

    drop_path: Any

    def __init__(self, channels: int, activation: str, drop_path: float, num_steps: int) -> None:
        super().__init__(channels, act_layer=activation, norm_layer=LayerNorm2d)
        self.drop_path = DropPath(drop_path, num_steps)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.at("after_convolution", self.through("conv_dw", x))
        # Channels already lie together in memory, so both permutations are views.
        residual = self.mlp(self.through("norm", residual).permute(0, 2, 3, 1))
        return x + self.drop_path((residual * self.gamma).permute(0, 3, 1, 2))


class VideoConvNeXt(VideoNetwork):
    """A ConvNeXt on folded frames; mean over steps and pixels, norm, dropout, linear."""

    stem_weight = "stem.0.weight"

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        yield self.backbone.stem, False
        for stage in self.backbone.stages:
            yield stage.downsample, False
            yield from ((block, True) for block in stage.blocks)

    def check(self, video: Tensor) -> None:
        super().check(video)
        if min(video.shape[3:]) < _LEAST_PX:
            raise ValueError(
                f"{self.name}: frames must have at least {_LEAST_PX} x {_LEAST_PX} px, got "
                f"{video.shape[3]} x {video.shape[4]}"
            )

    def classify(self, frames: Tensor) -> Tensor:
        # The steps of a clip one below the other, as one map.
        return self.backbone.forward_head(self.unfold(self.features(frames)).flatten(2, 3))

    @property
    def classifier(self) -> str:
        return "head.fc"

    @property
    def last_stage(self) -> nn.Module:
        """The fourth."""
        return self.backbone.stages[-1]

    def image_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By timm's own reader of original ConvNeXt names."""
        return dict(checkpoint_filter_fn(dict(state), self.backbone))


@dataclass(frozen=True)
class ConvNeXtOptions(Options):
    """What a ConvNeXt on folded frames takes.

    Attributes:
        temporal_stride: Frames from one step to the next; the stem sees 2 * this - 1.
        depths: Blocks per stage.
        widths: Channels per stage.
        activation: ``gelu`` or ``quick_gelu``, v * sigmoid(1.702 v).
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0; drawn for clips.
    """

    temporal_stride: int = option(2, positive_integer)
    depths: tuple[int, ...] = option((3, 3, 9, 3), positive_integers((3, 3, 9, 3)))
    widths: tuple[int, ...] = option((96, 192, 384, 768), positive_integers((96, 192, 384, 768)))
    activation: str = option("quick_gelu", one_of("gelu", "quick_gelu"))
    dropout: float = option(0.5, share)
    drop_path_rate: float = option(0.0, share)


def build_convnext(
    options: ConvNeXtOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> VideoConvNeXt:
    """Builds a ConvNeXt on folded frames that carries temporal layers, or none (C2D)."""
    depths, widths = options.depths, options.widths
    if len(depths) != 4 or len(widths) != 4:
        raise ValueError(
            "depths and widths must have one entry for each of the 4 stages, "
            f"got {list(depths)} and {list(widths)}"
        )
    stem = overlapping(clip_length, options.temporal_stride)
    num_steps = stem.num_steps(clip_length)
    backbone: Any = ConvNeXt(
        in_chans=3 * stem.kernel,
        num_classes=num_classes,
        depths=tuple(depths),
        dims=tuple(widths),
        act_layer=options.activation,
        drop_rate=options.dropout,
    )
    # timm's own, which are here taken for their weights, drop paths by frames and have no places.
    rates = torch.linspace(0, options.drop_path_rate, sum(depths), device="cpu").tolist()
    for number, stage in enumerate(backbone.stages):
        for index, drawn in enumerate(stage.blocks):
            rate = rates[sum(depths[:number]) + index]
            block = TemporalConvNeXtBlock(widths[number], options.activation, rate, num_steps)
            block.load_state_dict(drawn.state_dict())
            if temporal is not None:
                here = (widths[number], num_steps, number, index)
                block.fill(
                    temporal,
                    Place("convolution", *here, replaces="conv_dw", convolution=block.conv_dw),
                    Place("after_convolution", *here),
                    Place("norm", *here, replaces="norm", norm=block.norm),
                )
            stage.blocks[index] = block
    return VideoConvNeXt(backbone, clip_length, stem)


CONVNEXT = Backbone("convnext", ConvNeXtOptions, build_convnext, load_image_weights)

_DEEP = (3, 3, 27, 3)
CONVNEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "tiny": ({"drop_path_rate": 0.2}, "convnext_tiny.fb_in1k"),
    "small": ({"depths": _DEEP, "drop_path_rate": 0.4}, "convnext_small.fb_in1k"),
    "base": (
        {"depths": _DEEP, "widths": (128, 256, 512, 1024), "drop_path_rate": 0.6},
        "convnext_base.fb_in1k",
    ),
}
"""Of each size what differs from the smallest, and timm's name of its ImageNet weights."""
