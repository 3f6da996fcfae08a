"""C2D and DTF ResNets: timm's ResNet on folded frames, with temporal filters behind its 3x3 convolutions.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252), DTF-Net.
Backbone: timm. Differences from the released code: basic blocks (ResNet-18) are supported, with a filter
after each of their two 3x3 convolutions.

Letters: B clips, T steps, s frames per step, C channels, H x W pixels; folded frames are (B*T, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

from dtf.models.block import FoldedDTFBlock
from dtf.models.network import VideoNetwork
from dtf.models.registry import register_model


class DTFBasicBlock(BasicBlock):
    """timm's basic block with a temporal filter between each 3x3 convolution and its batch norm."""

    def __init__(self, *args: Any, filter_arguments: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtf1 = FoldedDTFBlock(self.conv1.out_channels, **filter_arguments)
        self.dtf2 = FoldedDTFBlock(self.conv2.out_channels, **filter_arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.act1(self.bn1(self.dtf1(self.conv1(x))))
        residual = self.bn2(self.dtf2(self.conv2(residual)))
        return _join(self, residual, x, self.act2)


class DTFBottleneck(Bottleneck):
    """timm's bottleneck with a temporal filter between its 3x3 convolution and the batch norm."""

    def __init__(self, *args: Any, filter_arguments: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtf = FoldedDTFBlock(self.conv2.out_channels, **filter_arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.act2(self.bn2(self.dtf(self.conv2(residual))))
        residual = self.bn3(self.conv3(residual))
        return _join(self, residual, x, self.act3)


def _join(
    block: BasicBlock | Bottleneck, residual: torch.Tensor, x: torch.Tensor, activation: nn.Module
) -> torch.Tensor:
    if block.drop_path is not None:
        residual = block.drop_path(residual)
    shortcut = x if block.downsample is None else block.downsample(x)
    return activation(residual + shortcut)


class VideoResNet(VideoNetwork):
    """A ResNet on folded frames; mean over steps and pixels, dropout, linear."""

    def __init__(self, backbone: ResNet, clip_length: int, temporal_stride: int, dropout: float) -> None:
        super().__init__(backbone, clip_length, temporal_stride)
        self.dropout = dropout
        self.to(memory_format=torch.channels_last)

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        net = self.backbone
        yield from ((module, False) for module in (net.conv1, net.bn1, net.act1, net.maxpool))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            yield from ((block, True) for block in stage)

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        features = self.features(frames)  # (B*T, C, h, w)
        features = features.mean(dim=(2, 3)).unflatten(0, (-1, self.num_steps)).mean(dim=1)
        return self.backbone.fc(F.dropout(features, self.dropout, self.training))


_BLOCKS: dict[tuple[str, bool], Any] = {
    ("basic", True): DTFBasicBlock,
    ("basic", False): BasicBlock,
    ("bottleneck", True): DTFBottleneck,
    ("bottleneck", False): Bottleneck,
}


@register_model("dtf_tiny", fixed={"temporal_filter": True, "block": "basic"}, pocket=True,
                temporal_stride=1, layers=(1, 1, 1, 1),
                widths=(16, 32, 64, 128), stem_width=16, dropout=0.0)  # fmt: skip
@register_model("c2d_tiny", fixed={"temporal_filter": False, "block": "basic"}, pocket=True,
                temporal_stride=1, layers=(1, 1, 1, 1),
                widths=(16, 32, 64, 128), stem_width=16, dropout=0.0)  # fmt: skip
@register_model("dtf_resnet18", fixed={"temporal_filter": True, "block": "basic", "stem_width": None},
                layers=(2, 2, 2, 2), imagenet="resnet18.tv_in1k")  # fmt: skip
@register_model("c2d_resnet18", fixed={"temporal_filter": False, "block": "basic", "stem_width": None},
                layers=(2, 2, 2, 2), imagenet="resnet18.tv_in1k")  # fmt: skip
@register_model("dtf_resnet50", fixed={"temporal_filter": True, "block": "bottleneck", "stem_width": None},
                layers=(3, 4, 6, 3), imagenet="resnet50.tv_in1k")  # fmt: skip
@register_model("c2d_resnet50", fixed={"temporal_filter": False, "block": "bottleneck", "stem_width": None},
                layers=(3, 4, 6, 3), imagenet="resnet50.tv_in1k")  # fmt: skip
@register_model("dtf_resnet101", fixed={"temporal_filter": True, "block": "bottleneck", "stem_width": None},
                layers=(3, 4, 23, 3), imagenet="resnet101.tv_in1k")  # fmt: skip
@register_model("c2d_resnet101", fixed={"temporal_filter": False, "block": "bottleneck", "stem_width": None},
                layers=(3, 4, 23, 3), imagenet="resnet101.tv_in1k")  # fmt: skip
def video_resnet(
    *,
    temporal_filter: bool,
    block: str,
    num_classes: int = 400,
    clip_length: int = 16,
    temporal_stride: int = 4,
    layers: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    stem_width: int | None = None,
    dropout: float = 0.5,
    drop_path_rate: float = 0.0,
    kernel_size: int = 3,
    filter_groups: int = 16,
) -> VideoResNet:
    """Builds a ResNet on folded frames, with (DTF-Net) or without (C2D) temporal filters.

    Args:
        temporal_filter: Whether temporal filters stand behind the 3x3 convolutions.
        block: ``basic`` or ``bottleneck``.
        num_classes: Length of the logits.
        clip_length: Frames per clip.
        temporal_stride: Frames s that the stem joins.
        layers: Blocks per stage.
        widths: Channels per stage (of a bottleneck's 3x3 convolution).
        stem_width: Channels of the small stem for small frames (5x5, stride 2, no pooling); ``None`` for
            ResNet's own (7x7, stride 2, 64 channels, max pooling of stride 2).
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        kernel_size: Window side K of the temporal filters.
        filter_groups: Filter groups G of the temporal filters.
    """
    if len(layers) != 4 or len(widths) != 4:
        raise ValueError(
            "layers and widths must have one entry for each of the 4 stages, "
            f"got {list(layers)} and {list(widths)}"
        )
    num_steps = clip_length // temporal_stride
    arguments: dict[str, Any] = {}
    if temporal_filter:
        filters = {"num_frames": num_steps, "kernel_size": kernel_size, "filter_groups": filter_groups}
        arguments["block_args"] = {"filter_arguments": filters}
    if stem_width is not None:
        if stem_width % 2:
            raise ValueError(f"stem_width must be an even number of channels, got {stem_width}")
        # timm fixes the plain stem at 64 channels; its deep stem has 2 * stem_width, and is replaced below.
        arguments.update(stem_type="deep", stem_width=stem_width // 2)
    backbone: Any = ResNet(
        _BLOCKS[block, temporal_filter],
        tuple(layers),
        num_classes=num_classes,
        in_chans=3 * temporal_stride,
        channels=tuple(widths),
        drop_path_rate=drop_path_rate,
        zero_init_last=False,
        **arguments,
    )
    if stem_width is not None:
        stem = nn.Conv2d(3 * temporal_stride, stem_width, kernel_size=5, stride=2, padding=2, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        backbone.conv1 = stem
        backbone.maxpool = nn.Identity()
    return VideoResNet(backbone, clip_length, temporal_stride, dropout)
