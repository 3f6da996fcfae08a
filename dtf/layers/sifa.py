"""SIFA: attention of each pixel to deformed places of the next frame, and what stands beside it in networks.

Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
Parameters have the names of the released code. Differences from it: frames are shifted without its race; the
weight of the correlation, a constant stored for a fixed number of frames, does not exist, so any number of
frames goes; offsets start at zero (there a network draws them anew after its blocks have set them to zero);
tokens of Swin are read in their order, not as the released kernels read their memory.

Letters: B clips, C channels, T frames at the block, H x W pixels, K window side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.layers.options import Options, one_of, option, positive_integer
from dtf.layers.temporal import Family, Looks, Maps, Place, TemporalLayer, register_family
from dtf.ops import (
    deformable_aggregation,
    deformable_correlation,
    temporal_aggregation,
    temporal_correlation,
)
from dtf.ops.checks import check_choice, check_positive, check_window
from dtf.ops.common.window import accumulation_dtype, offsets
from dtf.ops.dispatch import BackendName

OffsetInit = Literal["zero", "kaiming"]
Attention = Literal["none", "softmax"]


class SIFABlock(TemporalLayer):
    """Adds to every frame what its pixels find in the next one; the last frame stays as it is.

    Each pixel of frame t looks at K*K deformed places of frame t + 1. They are weighted with their products
    with the pixel, mean over channels, and summed. Where they lie is predicted from frame t + 1 and from what
    changed since frame t by a 3x3 convolution (``conv_offset``).

    Places are computed in float32 (float64 for float64), also under autocast; the rest in the dtype of the
    input.

    Args:
        channels: C.
        kernel_size: Window side K in pixels, odd.
        dilation: Distance of neighbouring taps.
        deform: Whether there are offsets; without them the taps are the pixels of the window, the layer has
            no parameters, and costs less.
        rescale_offsets: Whether offsets are predicted from features that are scaled up where they changed, or
            from the features alone.
        offset_init: Of the convolution: ``zero``, or ``kaiming`` normal (fan out), which the released
            networks have.
        attention: ``none``: products as they are; ``softmax`` over the taps (ours).
        backend: Backend of the operators.

    Shape:
        (B, C, T, H, W) -> same, any T and memory layout, same dtype.

    Raises:
        ValueError: Arguments out of range, or an input of other channels.
    """

    family = "sifa"

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        *,
        deform: bool = True,
        rescale_offsets: bool = True,
        offset_init: OffsetInit = "zero",
        attention: Attention = "none",
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_positive("SIFABlock", channels=channels)
        check_window("SIFABlock", kernel_size, dilation)
        check_choice("SIFABlock", ("zero", "kaiming"), offset_init=offset_init)
        check_choice("SIFABlock", ("none", "softmax"), attention=attention)
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.rescale_offsets = rescale_offsets
        self.offset_init = offset_init
        self.attention = attention
        self.backend: BackendName = backend
        self.conv_offset: nn.Conv3d | None = None
        if deform:
            # The original's shape, (2*K*K, C, 1, 3, 3); it runs on folded frames.
            outputs = 2 * kernel_size**2
            self.conv_offset = nn.Conv3d(channels, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the convolution of the offsets as ``offset_init`` says."""
        if self.conv_offset is None:
            return
        if self.offset_init == "zero":
            nn.init.zeros_(self.conv_offset.weight)
        else:
            nn.init.kaiming_normal_(self.conv_offset.weight, mode="fan_out", nonlinearity="relu")

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"deform={self.conv_offset is not None}, rescale_offsets={self.rescale_offsets}, "
            f"attention={self.attention!r}, backend={self.backend!r}"
        )

    def offsets(self, x: Tensor) -> Tensor | None:
        """Where the taps of each frame lie, (B, 2*K*K, T, H, W), in pixels; None without offsets."""
        if self.conv_offset is None:
            return None
        # The meta device, where FLOPs are counted, knows no autocast.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            features = x.to(accumulation_dtype(x))
            if self.rescale_offsets:
                former = torch.cat((features[:, :, :1], features[:, :, :-1]), dim=2)
                features = features * (1 + torch.sigmoid(features - former))
            weight = self.conv_offset.weight.squeeze(2).to(features.dtype)
            places = F.conv2d(features.transpose(1, 2).flatten(0, 1), weight, padding=1)
        return places.unflatten(0, (-1, x.shape[2])).transpose(1, 2)

    def weights(self, x: Tensor, places: Tensor | None) -> Tensor:
        """How much each tap of frame t counts for the frame before it, (B, K*K, T, H, W)."""
        window = (self.kernel_size, self.dilation)
        if places is None:
            maps = temporal_correlation(x, *window, backend=self.backend)
        else:
            maps = deformable_correlation(x, places, *window, backend=self.backend)
        if self.attention == "softmax":
            maps = maps.softmax(dim=1).to(x.dtype)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.channels:
            raise ValueError(f"SIFABlock takes (B, {self.channels}, T, H, W), got {tuple(x.shape)}")
        if x.shape[2] == 1:
            return x
        return torch.cat((x[:, :, :-1] + self.found(x), x[:, :, -1:]), dim=2)

    def found(self, x: Tensor) -> Tensor:
        """What each frame but the last finds in the next one, (B, C, T - 1, H, W); T is at least 2."""
        places = self.offsets(x)
        weights, window = self.weights(x, places), (self.kernel_size, self.dilation)
        if places is None:
            found = temporal_aggregation(x, weights, *window, backend=self.backend)
        else:
            found = deformable_aggregation(x, places, weights, *window, backend=self.backend)
        return found[:, :, 1:]

    def explain(self, x: Tensor) -> Maps | None:
        """How much each tap of the next frame counted, per pixel, mean over the frames; and where it lay."""
        if x.shape[2] == 1:
            return None
        places = self.offsets(x)
        weights = self.weights(x, places)[:, :, 1:].to(accumulation_dtype(x))
        window = offsets(self.kernel_size, self.dilation)
        taps = weights.new_tensor(window)[:, :, None, None, None]  # (N, 2, 1, 1, 1)
        if places is None:
            displacement = taps.expand(len(x), -1, -1, *weights.shape[2:])
        else:
            displacement = taps + places[:, :, 1:].unflatten(1, (len(window), 2))
        return Maps(
            "taps",
            "what was attended to in the next frame",
            weights.square().mean(dim=2),
            tuple(f"row {dh:+d}, column {dw:+d}" for dh, dw in window),
            looks=Looks(displacement.permute(0, 3, 1, 2, 4, 5), weights.transpose(1, 2)),
        )

    def watched(self) -> dict[str, Tensor]:
        """The convolution of the offsets, which says how far they have left zero."""
        return {} if self.conv_offset is None else {"conv_offset": self.conv_offset.weight}


class SIFAStep(TemporalLayer):
    """Attention to the next frame within a transformer's block: what is found is normalised and added.

    A fresh one is the identity: its norm has weights of zero.

    Args:
        attend: What attends.

    Shape:
        (B, C, T, H, W) -> same, any T and memory layout, same dtype.
    """

    family = "sifa"

    def __init__(self, attend: SIFABlock) -> None:
        super().__init__()
        self.attend = attend
        self.norm = nn.LayerNorm(attend.channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        # Of the last frame, which finds nothing, the norm leaves its bias.
        found = F.pad(self.attend.found(x), (0, 0, 0, 0, 0, 1)) if x.shape[2] > 1 else torch.zeros_like(x)
        return x + self.norm(found.movedim(1, -1)).movedim(-1, 1).to(x.dtype)

    def explain(self, x: Tensor) -> Maps | None:
        """That of :class:`SIFABlock`."""
        return self.attend.explain(x)

    def watched(self) -> dict[str, Tensor]:
        """The norm's weights, which say how much is added."""
        return {"norm": self.norm.weight}


class ConvolutionStep(TemporalLayer):
    """Adds a convolution of kernel 3 over time; a fresh one is the identity.

    Args:
        channels: C.

    Shape:
        (B, C, T, H, W) -> same, any T and memory layout, same dtype.
    """

    family = "sifa"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.flatten(3)).unflatten(3, x.shape[3:]).to(x.dtype)

    def watched(self) -> dict[str, Tensor]:
        """Its kernels."""
        return {"conv": self.conv.weight}


class GlobalContext(TemporalLayer):
    """Adds to every pixel what a small network makes of the mean over all frames and pixels.

    Args:
        channels: C.
        reduction: C over the width of the layer between.

    Shape:
        (B, C, T, H, W) -> same, any T and memory layout, same dtype.
    """

    family = "sifa"

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        width = max(1, channels // reduction)
        self.fc1, self.fc2 = nn.Linear(channels, width), nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        context = self.fc2(self.fc1(x.mean(dim=(2, 3, 4))).relu())
        return x + context[:, :, None, None, None].to(x.dtype)


@dataclass(frozen=True)
class SIFAOptions(Options):
    """What networks may choose of their SIFA blocks; see :class:`SIFABlock`.

    Attributes:
        first_stage: The first stage, counted from 0, that has blocks.
        every: In ResNets, the block of every so many in a stage has one, the last of them; 2 as published,
            1: each.
        global_context: Whether the other bottlenecks of these stages have a :class:`GlobalContext`.
    """

    kernel_size: int = option(3, positive_integer)
    deform: bool = option(True, one_of(True, False))
    rescale_offsets: bool = option(True, one_of(True, False))
    offset_init: OffsetInit = option("zero", one_of("zero", "kaiming"))
    attention: Attention = option("none", one_of("none", "softmax"))
    first_stage: int = option(1, one_of(0, 1, 2, 3))
    every: int = option(2, positive_integer)
    global_context: bool = option(False, one_of(True, False))
    backend: BackendName = option("auto", one_of("auto", "reference", "torch", "cupy"))

    def block(self, channels: int) -> SIFABlock:
        """A block as these say."""
        return SIFABlock(
            channels,
            self.kernel_size,
            deform=self.deform,
            rescale_offsets=self.rescale_offsets,
            offset_init=self.offset_init,
            attention=self.attention,
            backend=self.backend,
        )


def _build(options: SIFAOptions, place: Place) -> TemporalLayer | None:
    """Bottlenecks attend behind the activation of their spatial convolution, the others have a context.

    Transformers attend in blocks whose windows are not shifted, and have a convolution in the others. Layers
    that join frames stand only where there are some.
    """
    if place.stage < options.first_stage:
        return None
    joins = place.num_steps > 1
    if place.slot == "after_attention" and joins:
        channels = place.channels
        return ConvolutionStep(channels) if place.shifted else SIFAStep(options.block(channels))
    attends = place.block % options.every == options.every - 1
    if place.slot == "after_activation" and attends and joins:
        return options.block(place.channels)
    if place.slot == "residual" and options.global_context and not attends:
        return GlobalContext(place.channels)
    return None


SIFA = register_family(Family("sifa", SIFAOptions, _build))
