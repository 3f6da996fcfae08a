"""A ResNet with a second copy of its last stage: half the steps, twice the resolution, its own head.

Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931), as
released. Letters: B clips, T steps, C channels, H x W pixels, K classes; folded frames are (B*T, C, H, W).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.models.resnet import downsample_conv
from torch import Tensor, nn

from dtf.layers.options import one_of, option
from dtf.layers.temporal import Temporal
from dtf.models.heads import joined_heads, mean_features
from dtf.models.network import VideoNetwork
from dtf.models.registry import Backbone
from dtf.models.resnet import (
    Carried,
    ResNetOptions,
    TemporalBottleneck,
    VideoResNet,
    build_resnet,
    draw_weights,
    norm_of,
)
from dtf.models.weights.images import load_image_weights


class DualResNet(VideoResNet):
    """A ResNet on folded frames whose last stage stands twice, each with a classifier.

    The second one, ``layer4_dual``, sees pairs of steps joined by their maximum, and has no stride. In
    training the network gives the logits of both heads, (B, 2, K); in evaluation (B, K), whose softmax is the
    mean of their softmax scores.
    """

    num_heads = 2

    def stage(self, blocks: nn.Sequential, frames: Tensor) -> Tensor:
        """A stage of the backbone on folded frames."""
        if not self.recomputes:
            return blocks(frames)
        return self.in_turn(((block, True) for block in blocks), frames)

    def heads(self, frames: Tensor) -> Tensor:
        """(B*T, 3*k, H, W) -> (B, 2, K)."""
        net = self.backbone
        frames = net.maxpool(net.act1(net.bn1(net.conv1(frames))))
        for stage in (net.layer1, net.layer2, net.layer3):
            frames = self.stage(stage, frames)
        pairs = self.num_steps // 2
        steps = frames.unflatten(0, (-1, self.num_steps))[:, : 2 * pairs]
        joined = steps.unflatten(1, (pairs, 2)).amax(dim=2).flatten(0, 1)
        joined = joined.contiguous(memory_format=torch.channels_last)
        branches = (
            (net.layer4, frames, self.num_steps, net.fc),
            (net.layer4_dual, joined, pairs, net.fc_dual),
        )
        logits = [
            mean_features(self.stage(stage, seen), num_steps, classifier, self.dropout, self.training)
            for stage, seen, num_steps, classifier in branches
        ]
        return torch.stack(logits, dim=1)

    def classify(self, frames: Tensor) -> Tensor:
        logits = self.heads(frames)
        return logits if self.training else joined_heads(logits)

    @property
    def classifiers(self) -> tuple[str, ...]:
        return ("fc", "fc_dual")

    def image_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The last stage's weights are those of its copy as well."""
        copies = {f"layer4_dual{key[6:]}": value for key, value in state.items() if key[:7] == "layer4."}
        return {**state, **copies}


@dataclass(frozen=True)
class DualResNetOptions(ResNetOptions):
    """What a ResNet with two branches takes.

    Attributes:
        dual: Whether there is the second branch.
        deep_stem: Whether the stem has three 3x3 convolutions instead of one of 7x7.
    """

    dual: bool = option(True, one_of(True, False))
    deep_stem: bool = option(False, one_of(True, False))


def build_dual_resnet(
    options: DualResNetOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> VideoResNet:
    """Builds a ResNet of bottlenecks, with its second branch if wanted. A fresh block adds nothing.

    Raises:
        ValueError: The second branch has no pair of steps, or one class, which softmax scores do not tell.
    """
    network = build_resnet(
        options, num_classes, clip_length, temporal, zero_init_last=True, deep_stem=options.deep_stem
    )
    if not options.dual:
        return network
    pairs = network.num_steps // 2
    if not pairs:
        raise ValueError(
            f"the second branch joins pairs of steps, and clips of {clip_length} frames have one step: "
            f"take clip_length={2 * options.temporal_stride} or more, or dual=false"
        )
    if num_classes == 1:
        raise ValueError("two heads are joined by softmax scores, which need 2 classes: take dual=false")
    backbone, norm = network.backbone, norm_of(options.deep_stem)
    order = ((3, index) for index in range(options.layers[3]))
    carried, planes = Carried(temporal, pairs, order, 1), options.widths[3]
    inputs, outputs = (4 * width for width in options.widths[2:])
    blocks: list[TemporalBottleneck] = []
    for twin in backbone.layer4:
        shortcut = downsample_conv(inputs, outputs, 1, norm_layer=norm) if not blocks else None
        blocks.append(
            TemporalBottleneck(
                inputs, planes, 1, shortcut, norm_layer=norm, drop_path=twin.drop_path, carried=carried
            )
        )
        inputs = outputs
    backbone.layer4_dual = nn.Sequential(*blocks)
    draw_weights(backbone.layer4_dual, zero_init_last=True)
    backbone.fc_dual = nn.Linear(outputs, num_classes)
    return DualResNet(backbone, clip_length, network.stem, dropout=options.dropout)


def _load(model: VideoNetwork, pretrained: bool | str | os.PathLike[str], published: str | None) -> None:
    """As :func:`load_image_weights`; timm has networks with such a deep stem under names of their own."""
    if published and model.arguments["deep_stem"]:
        published = published.replace(".tv_in1k", "s.gluon_in1k")
    load_image_weights(model, pretrained, published)


DUAL_RESNET = Backbone("ResNet with two branches", DualResNetOptions, build_dual_resnet, _load)
