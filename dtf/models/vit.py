"""timm's vision transformer on folded frames, with places for temporal layers around its attention.

Letters: B clips, T steps, C channels, H x W pixels or patches; timm keeps tokens as (B*T, 1 + H*W, C), that
of the class first. Temporal layers see the patches.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from dtf.layers.options import Options, option, positive_integer, share, side_or_sides
from dtf.layers.paths import DropPath
from dtf.layers.temporal import Place, Slots, Temporal
from dtf.models.network import VideoNetwork
from dtf.models.registry import Backbone
from dtf.models.stems import overlapping
from dtf.models.weights.images import load_image_weights


class TemporalViTBlock(Slots, Block):
    """timm's block with places for temporal layers ahead of attention and behind it; drops paths by clips."""

    drop_path1: Any
    drop_path2: Any

    def __init__(self, *args: Any, grid: tuple[int, int], num_steps: int, drop_path: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.grid = grid
        self.drop_path1 = DropPath(drop_path, num_steps)
        self.drop_path2 = DropPath(drop_path, num_steps)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # there is no mask
        x = self._at_patches("before_attention", x)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self._at_patches("after_attention2", x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _at_patches(self, slot: str, x: Tensor) -> Tensor:
        """Run what fills a slot on the patches; the class token passes by."""
        if slot not in self._filled:
            return x
        # A view, and channels_last.
        frames = x[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return torch.cat([x[:, :1], self.at(slot, frames).flatten(2).transpose(1, 2)], dim=1)


class _ViT(VisionTransformer):
    """timm's, whose last norm stands behind the blocks with the classifier."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As timm's, but for that norm, which is in the last layer."""
        return {**super().group_matcher(coarse), "blocks": [(r"^blocks\.(\d+)", None)]}


class VideoViT(VideoNetwork):
    """A vision transformer on folded frames; mean of the class tokens over T, norm, dropout, linear."""

    stem_weight = "patch_embed.proj.weight"

    def features(self, frames: Tensor) -> Tensor:
        """(B*T, 3*k, H, W) -> tokens behind the last block."""
        net = self.backbone
        tokens = net.norm_pre(net._pos_embed(net.patch_embed(frames)))
        return self.in_turn(((block, self.recomputes) for block in net.blocks), tokens)

    def classify(self, frames: Tensor) -> Tensor:
        tokens = self.features(frames)[:, 0].unflatten(0, (-1, self.num_steps))
        return self.backbone.head(self.backbone.head_drop(self.backbone.norm(tokens.mean(dim=1))))

    @property
    def classifier(self) -> str:
        return "head"

    @property
    def last_stage(self) -> nn.Module:
        """The norm ahead of the last attention, by which the class token sees the patches."""
        return self.backbone.blocks[-1].norm1

    def unfold(self, maps: Tensor) -> Tensor:
        """Tokens (B*T, 1 + h*w, C) -> (B, C, T, h, w)."""
        return super().unfold(maps[:, 1:].transpose(1, 2).unflatten(2, self.backbone.patch_embed.grid_size))

    def image_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By timm's own reader of CLIP's names; it also resizes position tables for another size."""
        return dict(checkpoint_filter_fn(dict(state), self.backbone))


@dataclass(frozen=True)
class ViTOptions(Options):
    """What a vision transformer on folded frames takes: that of CLIP, with QuickGELU and a norm in front.

    Attributes:
        temporal_stride: Frames from one step to the next; the patch embedding sees 2 * this - 1.
        image_size: Side, or (height, width), of the frames in pixels; multiples of `patch_size`.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels.
        blocks: How many.
        num_heads: Attention heads.
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0; drawn for clips.
    """

    temporal_stride: int = option(2, positive_integer)
    image_size: int | tuple[int, int] = option(224, side_or_sides)
    patch_size: int = option(16, positive_integer)
    embed_dim: int = option(768, positive_integer)
    blocks: int = option(12, positive_integer)
    num_heads: int = option(12, positive_integer)
    dropout: float = option(0.5, share)
    drop_path_rate: float = option(0.0, share)


def build_vit(options: ViTOptions, num_classes: int, clip_length: int, temporal: Temporal | None) -> VideoViT:
    """Builds a vision transformer on folded frames that carries temporal layers, or none (C2D)."""
    size, patch = options.image_size, options.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    if height % patch or width % patch:
        raise ValueError(f"image_size must be multiples of patch_size {patch}, got {size}")
    if options.embed_dim % options.num_heads:
        raise ValueError(f"num_heads must divide embed_dim, got {options.num_heads} and {options.embed_dim}")
    stem = overlapping(clip_length, options.temporal_stride)
    num_steps, grid = stem.num_steps(clip_length), (height // patch, width // patch)
    backbone: Any = _ViT(
        img_size=(height, width),
        patch_size=patch,
        in_chans=3 * stem.kernel,
        num_classes=num_classes,
        embed_dim=options.embed_dim,
        depth=options.blocks,
        num_heads=options.num_heads,
        pre_norm=True,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path_rate,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
        act_layer="quick_gelu",
        block_fn=functools.partial(TemporalViTBlock, grid=grid, num_steps=num_steps),  # type: ignore[arg-type]
    )
    if temporal is not None:
        # Behind timm's initialiser, which draws every matrix anew.
        for index, block in enumerate(backbone.blocks):
            here: dict[str, Any] = {
                "channels": options.embed_dim,
                "num_steps": num_steps,
                "stage": 0,
                "block": index,
                "drop_path_rate": block.drop_path1.drop_prob,
            }
            ahead, behind = Place("before_attention", **here), Place("after_attention", suffix="2", **here)
            block.fill(temporal, ahead, behind)
    return VideoViT(backbone, clip_length, stem, (height, width))


VIT = Backbone("vit", ViTOptions, build_vit, load_image_weights)

VITS: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({}, "vit_base_patch16_clip_quickgelu_224.openai"),
    "large": (
        {"embed_dim": 1024, "blocks": 24, "num_heads": 16, "patch_size": 14},
        "vit_large_patch14_clip_quickgelu_224.openai",
    ),
}
"""Of each size what differs from the smallest, and timm's name of CLIP's weights."""
