"""C2D-Swin and the DTF-Transformer: timm's Swin on folded frames, with filters in its unshifted blocks.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252),
DTF-Transformer.
Backbone: timm. Difference from the released code: the parameters that it declares and never calls (a 1x3
convolution per block, temporal filters in shifted blocks) do not exist.

Letters: B clips, T steps, s frames per step, C channels, H x W pixels or tokens; timm keeps tokens as (B*T,
H, W, C).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import nn

from dtf.models.block import FoldedDTFBlock
from dtf.models.network import VideoNetwork
from dtf.models.registry import register_model

_PATCH_PX = 4


class DTFSwinBlock(SwinTransformerBlock):
    """timm's unshifted Swin block with a temporal filter between attention and MLP."""

    def __init__(self, *args: Any, filter_arguments: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtf = FoldedDTFBlock(self.dim, **filter_arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        # Channels already lie together in memory, so both permutations are views.
        x = self.dtf(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class VideoSwin(VideoNetwork):
    """A Swin transformer on folded frames; mean over tokens, dropout, linear, mean of the logits over T."""

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        yield self.backbone.patch_embed, False
        for stage in self.backbone.layers:
            yield stage.downsample, False
            yield from ((block, True) for block in stage.blocks)
        yield self.backbone.norm, False

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        logits = self.backbone.forward_head(self.features(frames))
        return logits.unflatten(0, (-1, self.num_steps)).mean(dim=1)


@register_model("dtf_swin_tiny", fixed={"temporal_filter": True}, drop_path_rate=0.2,
                imagenet="swin_tiny_patch4_window7_224.ms_in1k")  # fmt: skip
@register_model("c2d_swin_tiny", fixed={"temporal_filter": False}, drop_path_rate=0.2,
                imagenet="swin_tiny_patch4_window7_224.ms_in1k")  # fmt: skip
@register_model("dtf_swin_small", fixed={"temporal_filter": True}, depths=(2, 2, 18, 2), drop_path_rate=0.3,
                imagenet="swin_small_patch4_window7_224.ms_in1k")  # fmt: skip
@register_model("c2d_swin_small", fixed={"temporal_filter": False}, depths=(2, 2, 18, 2), drop_path_rate=0.3,
                imagenet="swin_small_patch4_window7_224.ms_in1k")  # fmt: skip
@register_model("dtf_swin_base", fixed={"temporal_filter": True}, embed_dim=128, depths=(2, 2, 18, 2),
                num_heads=(4, 8, 16, 32), drop_path_rate=0.5,
                imagenet="swin_base_patch4_window7_224.ms_in22k_ft_in1k")  # fmt: skip
@register_model("c2d_swin_base", fixed={"temporal_filter": False}, embed_dim=128, depths=(2, 2, 18, 2),
                num_heads=(4, 8, 16, 32), drop_path_rate=0.5,
                imagenet="swin_base_patch4_window7_224.ms_in22k_ft_in1k")  # fmt: skip
@register_model("dtf_swin_large", fixed={"temporal_filter": True}, embed_dim=192, depths=(2, 2, 18, 2),
                num_heads=(6, 12, 24, 48), drop_path_rate=0.5,
                imagenet="swin_large_patch4_window7_224.ms_in22k_ft_in1k")  # fmt: skip
@register_model("c2d_swin_large", fixed={"temporal_filter": False}, embed_dim=192, depths=(2, 2, 18, 2),
                num_heads=(6, 12, 24, 48), drop_path_rate=0.5,
                imagenet="swin_large_patch4_window7_224.ms_in22k_ft_in1k")  # fmt: skip
def video_swin(
    *,
    temporal_filter: bool,
    num_classes: int = 400,
    clip_length: int = 16,
    temporal_stride: int = 4,
    image_size: int | Sequence[int] = 224,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    dropout: float = 0.0,
    drop_path_rate: float = 0.0,
    kernel_size: int = 3,
    filter_groups: int = 16,
) -> VideoSwin:
    """Builds a Swin on folded frames, with (DTF-Transformer) or without (C2D-Swin) temporal filters.

    Every block whose window shift is 0 carries a temporal filter; where a feature map is no larger than the
    window, timm sets the shift to 0 in all blocks of that stage, so all of them carry one.

    Args:
        temporal_filter: Whether unshifted blocks carry temporal filters.
        num_classes: Length of the logits.
        clip_length: Frames per clip.
        temporal_stride: Frames s that the patch embedding joins.
        image_size: Side, or (height, width), of the frames in pixels; at least 4. Feature maps need not
            divide by the window.
        embed_dim: Channels after the patch embedding; doubled by each later stage.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Attention window side in tokens.
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        kernel_size: Window side K of the temporal filters.
        filter_groups: Filter groups G of the temporal filters.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height % _PATCH_PX or width % _PATCH_PX:
        raise ValueError(f"image_size must be multiples of {_PATCH_PX} pixels, got {image_size}")
    if len(depths) != len(num_heads):
        raise ValueError(
            f"depths and num_heads must have one entry per stage, got {list(depths)} and {list(num_heads)}"
        )
    for stage, heads in enumerate(num_heads):
        if embed_dim * 2**stage % heads:
            raise ValueError(
                "num_heads must divide the channels of each stage: "
                f"stage {stage} has {embed_dim * 2**stage} channels and {heads} heads"
            )
    backbone: Any = SwinTransformer(
        img_size=(height, width),
        patch_size=_PATCH_PX,
        in_chans=3 * temporal_stride,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        drop_rate=dropout,
        drop_path_rate=drop_path_rate,
    )
    backbone.patch_embed.norm = nn.Identity()
    if temporal_filter:
        filters: dict[str, Any] = {
            "num_frames": clip_length // temporal_stride,
            "kernel_size": kernel_size,
            "filter_groups": filter_groups,
        }
        for stage in backbone.layers:
            for index, block in enumerate(stage.blocks):
                if not any(block.shift_size):
                    stage.blocks[index] = _with_filter(block, filters)
    return VideoSwin(backbone, clip_length, temporal_stride, (height, width))


def _with_filter(block: SwinTransformerBlock, filter_arguments: dict[str, Any]) -> DTFSwinBlock:
    """Returns an unshifted block of the same sizes and weights that carries a temporal filter."""
    path = block.drop_path1
    filtered = DTFSwinBlock(
        block.dim,
        block.input_resolution,
        num_heads=block.attn.num_heads,
        window_size=block.window_size,
        shift_size=0,
        mlp_ratio=block.mlp_ratio,
        drop_path=path.drop_prob if isinstance(path, DropPath) else 0.0,
        filter_arguments=filter_arguments,
    )
    missing, unexpected = filtered.load_state_dict(block.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("dtf.") for name in missing)
    return filtered
