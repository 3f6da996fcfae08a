"""timm's Swin on folded frames, with places for temporal layers between attention and MLP.

Letters: B clips, T steps, C channels, H x W pixels or tokens; timm keeps tokens as (B*T, H, W, C).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, checkpoint_filter_fn
from torch import nn

from dtf.layers.options import Options, option, positive_integer, positive_integers, share, side_or_sides
from dtf.layers.temporal import Place, Slots, Temporal
from dtf.models.heads import mean_logits
from dtf.models.network import VideoNetwork
from dtf.models.registry import Backbone
from dtf.models.stems import joined
from dtf.models.weights.images import load_image_weights

_PATCH_PX = 4


class TemporalSwinBlock(Slots, SwinTransformerBlock):
    """timm's Swin block with a temporal layer between attention and MLP."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        # Channels already lie together in memory, so both permutations are views.
        x = self.at("after_attention", x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class VideoSwin(VideoNetwork):
    """A Swin transformer on folded frames; mean over tokens, dropout, linear, mean of the logits over T."""

    stem_weight = "patch_embed.proj.weight"

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        yield self.backbone.patch_embed, False
        for stage in self.backbone.layers:
            yield stage.downsample, False
            yield from ((block, True) for block in stage.blocks)
        yield self.backbone.norm, False

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        return mean_logits(self.backbone.forward_head(self.features(frames)), self.num_steps)

    @property
    def classifier(self) -> str:
        return "head.fc"

    @property
    def last_stage(self) -> nn.Module:
        """The last one."""
        return self.backbone.layers[-1]

    def unfold(self, maps: torch.Tensor) -> torch.Tensor:
        """(B*T, h, w, C) -> (B, C, T, h, w)."""
        return super().unfold(maps.permute(0, 3, 1, 2))

    def image_state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By timm's own reader of original Swin names; it also resizes position tables for another window."""
        state = checkpoint_filter_fn(dict(state), self.backbone)
        return {k: v for k, v in state.items() if not k.startswith(("patch_embed.norm.", "head."))}


@dataclass(frozen=True)
class SwinOptions(Options):
    """What a Swin on folded frames takes.

    Attributes:
        temporal_stride: Frames that the patch embedding joins into a step.
        image_size: Side, or (height, width), of the frames in pixels; at least 4. Feature maps need not
            divide by the window.
        embed_dim: Channels after the patch embedding; doubled by each later stage.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Attention window side in tokens.
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
    """

    temporal_stride: int = option(4, positive_integer)
    image_size: int | tuple[int, int] = option(224, side_or_sides)
    embed_dim: int = option(96, positive_integer)
    depths: tuple[int, ...] = option((2, 2, 6, 2), positive_integers((2, 2, 6, 2)))
    num_heads: tuple[int, ...] = option((3, 6, 12, 24), positive_integers((3, 6, 12, 24)))
    window_size: int = option(7, positive_integer)
    dropout: float = option(0.0, share)
    drop_path_rate: float = option(0.0, share)


def build_swin(
    options: SwinOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> VideoSwin:
    """Builds a Swin on folded frames that carries temporal layers, or none (C2D).

    Where a feature map is no larger than the window, timm sets the shift to 0 in all blocks of that stage: a
    family that takes unshifted blocks then stands in all of them.
    """
    size, depths, num_heads = options.image_size, options.depths, options.num_heads
    height, width = (size, size) if isinstance(size, int) else size
    if height % _PATCH_PX or width % _PATCH_PX:
        raise ValueError(f"image_size must be multiples of {_PATCH_PX} pixels, got {size}")
    if len(depths) != len(num_heads):
        raise ValueError(
            f"depths and num_heads must have one entry per stage, got {list(depths)} and {list(num_heads)}"
        )
    for stage, heads in enumerate(num_heads):
        if options.embed_dim * 2**stage % heads:
            raise ValueError(
                "num_heads must divide the channels of each stage: "
                f"stage {stage} has {options.embed_dim * 2**stage} channels and {heads} heads"
            )
    stem = joined(clip_length, options.temporal_stride)
    backbone: Any = SwinTransformer(
        img_size=(height, width),
        patch_size=_PATCH_PX,
        in_chans=3 * stem.kernel,
        num_classes=num_classes,
        embed_dim=options.embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=options.window_size,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path_rate,
    )
    backbone.patch_embed.norm = nn.Identity()
    if temporal is not None:
        for number, stage in enumerate(backbone.layers):
            for index, block in enumerate(stage.blocks):
                place = Place(
                    "after_attention",
                    block.dim,
                    stem.num_steps(clip_length),
                    number,
                    index,
                    shifted=any(block.shift_size),
                )
                stage.blocks[index] = _carrying(block, temporal, place)
    return VideoSwin(backbone, clip_length, stem, (height, width))


def _carrying(block: SwinTransformerBlock, temporal: Temporal, place: Place) -> SwinTransformerBlock:
    """Returns a block of the same sizes and weights that carries a layer; the block if none stands there."""
    layer = temporal.layer(place)
    if layer is None:
        return block
    path = block.drop_path1
    carrying = TemporalSwinBlock(
        block.dim,
        block.input_resolution,
        num_heads=block.attn.num_heads,
        window_size=block.window_size,
        shift_size=block.shift_size,
        mlp_ratio=block.mlp_ratio,
        drop_path=path.drop_prob if isinstance(path, DropPath) else 0.0,
    )
    carrying.load_state_dict(block.state_dict())
    carrying.hold(temporal, place, layer)
    return carrying


SWIN = Backbone("swin", SwinOptions, build_swin, load_image_weights)

_LARGE = (2, 2, 18, 2)
SWINS: dict[str, tuple[dict[str, Any], str]] = {
    "tiny": ({"drop_path_rate": 0.2}, "swin_tiny_patch4_window7_224.ms_in1k"),
    "small": ({"depths": _LARGE, "drop_path_rate": 0.3}, "swin_small_patch4_window7_224.ms_in1k"),
    "base": (
        {"embed_dim": 128, "depths": _LARGE, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
        "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    ),
    "large": (
        {"embed_dim": 192, "depths": _LARGE, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.5},
        "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    ),
}
"""Of each size what differs from the smallest, and timm's name of its ImageNet weights."""
