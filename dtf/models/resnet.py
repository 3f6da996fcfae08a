"""timm's ResNet on folded frames, with places for temporal layers at its spatial convolutions.

Letters: B clips, T steps, C channels, H x W pixels; folded frames are (B*T, C, H, W).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from torch import nn

from dtf.layers.options import Options, one_of, option, optional, positive_integer, positive_integers, share
from dtf.layers.temporal import Place, Slots, Temporal, temporal_layers
from dtf.models.heads import mean_features
from dtf.models.network import VideoNetwork
from dtf.models.registry import Backbone
from dtf.models.stems import joined
from dtf.models.weights.images import load_image_weights


@dataclass
class Carried:
    """What blocks carry, and where the next one that is built stands: timm builds them in order.

    The very first block has a stride of its own, for which timm has no argument.
    """

    temporal: Temporal | None
    num_steps: int
    order: Iterator[tuple[int, int]]
    first_stride: int

    def next(
        self, block: type[BasicBlock] | type[Bottleneck], args: Sequence[Any]
    ) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
        """(steps, stage, block) and, from timm's, the arguments of the block that is built next."""
        stage, index = next(self.order)
        inputs, planes, *others = args
        if (stage, index) == (0, 0) and self.first_stride != 1:
            shortcut = downsample_conv(inputs, planes * block.expansion, 1, self.first_stride)
            others[:2] = [self.first_stride, shortcut]
        return (self.num_steps, stage, index), (inputs, planes, *others)


class TemporalBasicBlock(Slots, BasicBlock):
    """timm's basic block with places at its 3x3 convolutions: of each, behind it, and of its norm."""

    def __init__(self, *args: Any, carried: Carried, **kwargs: Any) -> None:
        where, args = carried.next(BasicBlock, args)
        super().__init__(*args, **kwargs)
        if carried.temporal is None:
            return
        for suffix in ("1", "2"):
            self.fill(carried.temporal, *_places(self, where, f"conv{suffix}", f"bn{suffix}", suffix))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.at("after_convolution1", self.through("conv1", x))
        residual = self.act1(self.through("bn1", residual))
        residual = self.at("after_convolution2", self.through("conv2", residual))
        return _join(self, self.through("bn2", residual), x, self.act2)


class TemporalBottleneck(Slots, Bottleneck):
    """timm's bottleneck with places at its 3x3 convolution, as in basic blocks, and behind it.

    Those are behind the convolution's activation, and behind the last norm.
    """

    def __init__(self, *args: Any, carried: Carried, **kwargs: Any) -> None:
        where, args = carried.next(Bottleneck, args)
        super().__init__(*args, **kwargs)
        if carried.temporal is None:
            return
        behind = Place("after_activation", self.conv2.out_channels, *where)
        last = Place("residual", self.conv3.out_channels, *where)
        self.fill(carried.temporal, *_places(self, where, "conv2", "bn2"), behind, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.at("after_convolution", self.through("conv2", residual))
        residual = self.at("after_activation", self.act2(self.through("bn2", residual)))
        residual = self.at("residual", self.bn3(self.conv3(residual)))
        return _join(self, residual, x, self.act3)


def _places(
    block: nn.Module, where: tuple[int, int, int], convolution: str, norm: str, suffix: str = ""
) -> tuple[Place, ...]:
    """The places at a convolution in the order in which a block passes them; `where`: steps, stage, block."""
    module = getattr(block, convolution)
    here = (module.out_channels, *where, suffix)
    return (
        Place("convolution", *here, replaces=convolution, convolution=module),
        Place("after_convolution", *here),
        Place("norm", *here, replaces=norm, norm=getattr(block, norm)),
    )


def _join(
    block: BasicBlock | Bottleneck, residual: torch.Tensor, x: torch.Tensor, activation: nn.Module
) -> torch.Tensor:
    if block.drop_path is not None:
        residual = block.drop_path(residual)
    shortcut = x if block.downsample is None else block.downsample(x)
    return activation(residual + shortcut)


class _ResNet(ResNet):
    """timm's ResNet, which draws no weights anew within the temporal layers that it carries."""

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Kaiming normal, fan out, for convolutions, as timm; zero for the last norms of blocks if wanted."""
        draw_weights(self, zero_init_last)


def draw_weights(blocks: nn.Module, zero_init_last: bool) -> None:
    """As :meth:`_ResNet.init_weights` says."""
    own = {id(part) for layer in temporal_layers(blocks).values() for part in layer.modules()}
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d) and id(module) not in own:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_last and isinstance(module, BasicBlock | Bottleneck):
            module.zero_init_last()


class VideoResNet(VideoNetwork):
    """A ResNet on folded frames; mean over steps and pixels, dropout, linear."""

    def __init__(self, *args: Any, dropout: float) -> None:
        super().__init__(*args)
        deep = isinstance(self.backbone.conv1, nn.Sequential)
        self.stem_weight = "conv1.0.weight" if deep else "conv1.weight"
        self.dropout = dropout
        for parameter in self.parameters():
            # Module.to(memory_format) takes no module with kernels over time.
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        net = self.backbone
        yield from ((module, False) for module in (net.conv1, net.bn1, net.act1, net.maxpool))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            yield from ((block, True) for block in stage)

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        maps = self.features(frames)  # (B*T, C, h, w)
        return mean_features(maps, self.num_steps, self.backbone.fc, self.dropout, self.training)

    @property
    def classifier(self) -> str:
        return "fc"

    @property
    def last_stage(self) -> nn.Module:
        """The fourth."""
        return self.backbone.layer4


@dataclass(frozen=True)
class ResNetOptions(Options):
    """What a ResNet on folded frames takes.

    Attributes:
        block: ``basic`` or ``bottleneck``.
        temporal_stride: Frames that the stem joins into a step.
        layers: Blocks per stage.
        widths: Channels per stage (of a bottleneck's 3x3 convolution).
        stem_width: Channels of the small stem for small frames (5x5, stride 2, no pooling); ``None`` for
            ResNet's own (7x7, stride 2, 64 channels, max pooling of stride 2).
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
    """

    block: str = option("bottleneck", one_of("basic", "bottleneck"))
    temporal_stride: int = option(4, positive_integer)
    layers: tuple[int, ...] = option((3, 4, 6, 3), positive_integers((3, 4, 6, 3)))
    widths: tuple[int, ...] = option((64, 128, 256, 512), positive_integers((64, 128, 256, 512)))
    stem_width: int | None = option(None, optional(positive_integer))
    dropout: float = option(0.5, share)
    drop_path_rate: float = option(0.0, share)


def norm_of(deep_stem: bool) -> Any:
    """What makes the norms; those of networks with a deep stem have the epsilon that was published, 2e-5."""
    return functools.partial(nn.BatchNorm2d, eps=2e-5) if deep_stem else nn.BatchNorm2d


def build_resnet(
    options: ResNetOptions,
    num_classes: int,
    clip_length: int,
    temporal: Temporal | None,
    *,
    zero_init_last: bool = False,
    first_stride: int = 1,
    deep_stem: bool = False,
) -> VideoResNet:
    """Builds a ResNet on folded frames that carries temporal layers, or none (C2D).

    With ``zero_init_last`` a fresh block adds nothing to its shortcut. With ``first_stride`` 2 the
    first stage halves the frames, and the stem does not pool. With ``deep_stem`` it has three 3x3
    convolutions of 64, 64 and 128 channels, and norms are as :func:`norm_of` says.
    """
    layers, widths, stem_width = options.layers, options.widths, options.stem_width
    if len(layers) != 4 or len(widths) != 4:
        raise ValueError(
            "layers and widths must have one entry for each of the 4 stages, "
            f"got {list(layers)} and {list(widths)}"
        )
    stem = joined(clip_length, options.temporal_stride)
    basic = options.block == "basic"
    block: Any = BasicBlock if basic else Bottleneck
    arguments: dict[str, Any] = {}
    if temporal is not None or first_stride != 1:
        block = TemporalBasicBlock if basic else TemporalBottleneck
        order = ((stage, index) for stage, depth in enumerate(layers) for index in range(depth))
        arguments["block_args"] = {
            "carried": Carried(temporal, stem.num_steps(clip_length), order, first_stride)
        }
    if stem_width is not None:
        if stem_width % 2:
            raise ValueError(f"stem_width must be an even number of channels, got {stem_width}")
        # timm fixes the plain stem at 64 channels; its deep stem has 2 * stem_width, and is replaced below.
        arguments.update(stem_type="deep", stem_width=stem_width // 2)
    elif deep_stem:
        arguments.update(stem_type="deep", stem_width=64, norm_layer=norm_of(deep_stem))
    channels = 3 * stem.kernel
    backbone: Any = _ResNet(
        block,
        tuple(layers),
        num_classes=num_classes,
        in_chans=channels,
        channels=tuple(widths),
        drop_path_rate=options.drop_path_rate,
        zero_init_last=zero_init_last,
        **arguments,
    )
    if stem_width is not None:
        conv = nn.Conv2d(channels, stem_width, kernel_size=5, stride=2, padding=2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        backbone.conv1 = conv
    if stem_width is not None or first_stride != 1:
        backbone.maxpool = nn.Identity()
    return VideoResNet(backbone, clip_length, stem, dropout=options.dropout)


RESNET = Backbone("resnet", ResNetOptions, build_resnet, load_image_weights)

# Of the usual depths, what makes each what it is, and timm's name of their ImageNet weights.
_USUAL = {"stem_width": None}
RESNETS: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "18": ({"block": "basic", **_USUAL}, {"layers": (2, 2, 2, 2)}, "resnet18.tv_in1k"),
    "50": ({"block": "bottleneck", **_USUAL}, {"layers": (3, 4, 6, 3)}, "resnet50.tv_in1k"),
    "101": ({"block": "bottleneck", **_USUAL}, {"layers": (3, 4, 23, 3)}, "resnet101.tv_in1k"),
}
TINY: dict[str, Any] = {
    "temporal_stride": 1,
    "layers": (1, 1, 1, 1),
    "widths": (16, 32, 64, 128),
    "stem_width": 16,
    "dropout": 0.0,
}
"""A ResNet in pocket size, for small clips and for CPUs, whose stem is blind to motion."""
