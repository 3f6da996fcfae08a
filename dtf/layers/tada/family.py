"""The family's part in networks: what stands in the place of convolutions and norms, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtf.layers.options import Options, one_of, option, positive_integer
from dtf.layers.paths import DropPath
from dtf.layers.tada.convolutions import TAdaConv2d, TAdaConv2dV2, calibrated, narrow
from dtf.layers.tada.frames import ChannelNorm, check_clip, fold, mean_of_neighbours, silent, unfold
from dtf.layers.tada.routing import RouteFuncMLP, RouteFuncTransformer
from dtf.layers.temporal import Family, Maps, Place, TemporalLayer, register_family


class RoutedConv2d(TemporalLayer):
    """A :class:`TAdaConv2d` with its :class:`RouteFuncMLP`: stands in the place of a convolution of frames.

    A fresh one computes what the convolution alone would.

    Args:
        conv: The calibrated convolution, of its input's channels (``cin``).
        ratio: Of the routing function.
        kernels: Of the routing function.
        num_frames: T where it is given folded frames; ``None``: clips alone.

    Shape:
        (B, C, T, H, W) -> (B, out_channels, T, H', W'); with ``num_frames`` also folded frames
        (B*T, C, H, W), those of a clip following each other -> (B*T, out_channels, H', W'). Same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    family = "tada"

    def __init__(
        self,
        conv: TAdaConv2d,
        ratio: float = 4,
        kernels: Sequence[int] = (3, 3),
        num_frames: int | None = None,
    ) -> None:
        super().__init__()
        if conv.cal_dim != "cin":
            raise ValueError(f"RoutedConv2d takes a convolution with cal_dim 'cin', got {conv.cal_dim!r}")
        self.num_frames = num_frames
        self.conv = conv
        self.rf = RouteFuncMLP(conv.in_channels, ratio, kernels)

    def forward(self, x: Tensor) -> Tensor:
        frames, steps = self._folded(x)
        y = self.conv.on_frames(frames, fold(self.calibration(frames, steps)))
        return y if x.dim() == 4 else unfold(y, x.shape[0], steps)

    def _folded(self, x: Tensor) -> tuple[Tensor, int]:
        """Frames (B*T, C, H, W) and T."""
        if x.dim() == 4 and self.num_frames is not None:
            return x, self.num_frames
        check_clip("RoutedConv2d", x, self.conv.in_channels)
        return fold(x), x.shape[2]

    def calibration(self, frames: Tensor, num_steps: int) -> Tensor:
        """Alpha of folded frames (B*T, C, H, W), as (B, C, T, 1, 1)."""
        if frames.shape[0] % num_steps:
            raise ValueError(
                f"RoutedConv2d: {frames.shape[0]} folded frames are no whole clips of {num_steps}; "
                "pass the frames of whole clips, or clips (B, C, T, H, W)"
            )
        means = frames.mean(dim=(2, 3), keepdim=True)
        return self.rf.route(unfold(means, frames.shape[0] // num_steps, num_steps))

    def fresh_names(self) -> set[str]:
        """Those of the routing function."""
        return {f"rf.{name}" for name in self.rf.state_dict()}

    def fresh_norms(self) -> list[nn.Module]:
        """That of the routing function."""
        return [self.rf.bn]

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The convolution's kernel and bias, with the leading sizes of a calibrated one."""
        return {f"conv.{name}": value[None, None] for name, value in state.items()}

    def explain(self, x: Tensor) -> Maps:
        """The energy of what the calibration changes at each step, per pixel, mean over channels."""
        frames, steps = self._folded(x)
        alpha = fold(self.calibration(frames, steps))
        without_bias = torch.zeros_like(alpha[:, :1])
        return _changed(self.conv.on_frames(frames, alpha - 1, without_bias), steps, alpha - 1)

    def watched(self) -> dict[str, Tensor]:
        """The weight that starts at zero: how far kernels are calibrated."""
        return {"calibration": self.rf.b.weight}


class AttentionRoutedConv2d(TemporalLayer):
    """A :class:`TAdaConv2dV2` with a :class:`RouteFuncTransformer` beside it: in the place of a convolution.

    Kernel and bias are calibrated by output channels; a fresh one computes what the convolution alone would.

    Args:
        conv: The convolution whose sizes and weights it has; of as many channels out as in.
        ratio: Of the routing function.
        kernels: Of the routing function.
        head_dim: Of the routing function.

    Shape:
        (B, C, T, H, W) -> (B, C, T, H', W'), any T, same dtype.
    """

    family = "tada"

    def __init__(self, conv: nn.Conv2d, ratio: float, kernels: Sequence[int], head_dim: int) -> None:
        super().__init__()
        first = calibrated(conv)
        biased = first.bias is not None
        sizes = (first.kernel_size, first.stride, first.padding, first.dilation, first.groups, biased)
        channels = first.in_channels
        self.conv = TAdaConv2dV2(
            channels, channels, *sizes, "cout", internal_rf_func=False, internal_temp_aggr=False
        )
        self.conv.load_state_dict(first.state_dict())
        self.rf = RouteFuncTransformer(channels, ratio, kernels, biased, head_dim=head_dim)
        narrow(self.rf)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, *self.rf.calibrations(x))

    def fresh_names(self) -> set[str]:
        """Those of the routing function."""
        return {f"rf.{name}" for name in self.rf.state_dict()}

    def fresh_norms(self) -> list[nn.Module]:
        """None."""
        return []

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The convolution's kernel and bias, with the leading sizes of a calibrated one."""
        return {f"conv.{name}": value[None, None] for name, value in state.items()}

    def explain(self, x: Tensor) -> Maps:
        """The energy of what the calibration changes at each step, per pixel, mean over channels."""
        alpha, beta = (None if c is None else fold(c - 1) for c in self.rf.calibrations(x))
        assert alpha is not None
        return _changed(self.conv.on_frames(fold(x), alpha, beta), x.shape[2], alpha)

    def watched(self) -> dict[str, Tensor]:
        """The weight that starts at zero: how far kernels are calibrated."""
        return {"calibration": self.rf.b.weight}


def _changed(frames: Tensor, steps: int, change: Tensor) -> Maps:
    """Maps of what calibrations that differ from 1 by (B*T, C, 1, 1) change in folded frames."""
    energy = frames.float().square().mean(dim=1).unflatten(0, (-1, steps))
    return Maps(
        "calibration",
        "what the calibration of each frame's kernel changes",
        energy,
        _steps(steps),
        calibration=1 + change.float().flatten(1).unflatten(0, (-1, steps)),
    )


def _steps(count: int) -> tuple[str, ...]:
    return tuple(f"step {t}" for t in range(count))


class TAdaAdapter(TemporalLayer):
    """Adds to what a transformer hands on a calibrated convolution of it, in fewer channels (TAdaFormer).

    ``x + tada_proj(gelu(tadaconv(tada_pre_proj(x))))`` with gelu(v) = v * sigmoid(1.702 v); ``tadaconv`` is a
    depth-wise 3x3 :class:`TAdaConv2dV2` with a routing function and means of neighbouring frames of its own.
    ``tada_proj`` starts at zero, flagged ``skip_init``: a fresh one changes nothing.

    Args:
        channels: C.
        ratio: C / ratio are the channels of the convolution, and those over the routing function's.
        kernels: Of the routing function.
        head_dim: Of the routing function; divides C / ratio ** 2.
        over_time: Whether ``tada_pre_proj`` sees three frames instead of one.
        drop_path_rate: With what probability nothing is added to a clip in training.

    Shape:
        (B, C, T, H, W) -> same shape, any T, same dtype.
    """

    family = "tada"

    def __init__(
        self,
        channels: int,
        ratio: int = 2,
        kernels: Sequence[int] = (3, 3),
        head_dim: int = 64,
        over_time: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width = channels // ratio
        self.tada_pre_proj: nn.Conv3d | nn.Linear
        if over_time:
            self.tada_pre_proj = nn.Conv3d(channels, width, (3, 1, 1), padding=(1, 0, 0))
        else:
            self.tada_pre_proj = nn.Linear(channels, width)
        self.tadaconv = TAdaConv2dV2(
            *(width, width, 3, 1, 1),
            groups=width,
            cal_dim="cout",
            rf_r=ratio,
            rf_k=kernels,
            head_dim=head_dim,
        )
        self.tada_proj = nn.Linear(width, channels)
        self.drop_path = DropPath(drop_path_rate)
        narrow(self.tada_pre_proj)
        for parameter in self.tada_proj.parameters():
            nn.init.zeros_(parameter)
        self.tada_proj.skip_init = True  # type: ignore[assignment]  # nn.Module declares no such attribute

    def added(self, x: Tensor) -> Tensor:
        """What is added to a clip."""
        if isinstance(self.tada_pre_proj, nn.Conv3d):
            y = self.tada_pre_proj(x)
        else:
            y = self.tada_pre_proj(x.movedim(1, -1)).movedim(-1, 1)
        y = self.tadaconv(y)
        y = y * torch.sigmoid(1.702 * y)
        return self.tada_proj(y.movedim(1, -1)).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.added(x))

    def explain(self, x: Tensor) -> Maps:
        """The energy of what is added at each step, per pixel, mean over channels."""
        energy = self.added(x).float().square().mean(dim=1)
        return Maps("steps", "what calibrated convolutions added", energy, _steps(x.shape[2]))

    def watched(self) -> dict[str, Tensor]:
        """The weight that starts at zero: how much is added."""
        return {"projection": self.tada_proj.weight}


class PooledNorm(TemporalLayer):
    """``norm(x) + pool_norm(mean of x at t - 1, t, t + 1)``: stands in the place of a norm of frames.

    ``pool_norm`` starts at zero, flagged ``skip_init``: a fresh one computes what the norm alone would. The
    mean counts zeros beyond the clip (:func:`mean_of_neighbours`), for any T.

    Args:
        channels: C.
        kind: Of both norms, by channels: those of batches, or over the channels of each pixel.

    Shape:
        (B, C, T, H, W) -> same shape and dtype.
    """

    family = "tada"

    def __init__(
        self, channels: int, kind: type[nn.BatchNorm2d] | type[ChannelNorm] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.norm = kind(channels)
        self.pool_norm = silent(kind(channels))

    def forward(self, x: Tensor) -> Tensor:
        clips, steps, frames = x.shape[0], x.shape[2], fold(x)
        y = self.norm(frames) + self.pool_norm(mean_of_neighbours(frames, steps))
        return unfold(y, clips, steps)

    def fresh_names(self) -> set[str]:
        """Those of the second norm."""
        return {f"pool_norm.{name}" for name in self.pool_norm.state_dict()}

    def fresh_norms(self) -> list[nn.Module]:
        """The second norm, where it has statistics."""
        return [self.pool_norm] if isinstance(self.pool_norm, nn.BatchNorm2d) else []

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first norm's."""
        return {f"norm.{name}": value for name, value in state.items()}

    def watched(self) -> dict[str, Tensor]:
        """The scale of what comes from neighbouring frames."""
        return {"pool": self.pool_norm.weight}


def _odd_kernels(value: Any) -> str:
    good = isinstance(value, list | tuple) and len(value) == 2
    good = good and not any(positive_integer(k) or k % 2 == 0 for k in value)
    return "" if good else "two odd numbers of frames like [3, 3]"


@dataclass(frozen=True)
class TAdaOptions(Options):
    """What networks may choose of their calibrated convolutions.

    Attributes:
        routing: What calibrates a convolution: ``mlp``, of the first paper, or ``attention`` over frames, of
            the second.
        routing_ratio: Channels of a convolution over those within its routing function; in transformers, also
            those of the network over those of the convolution.
        routing_kernels: Frames that the two convolutions of a routing function see.
        head_dim: Channels of a head of the attention.
        temporal_pool: Whether what neighbouring frames have is added behind it (:class:`PooledNorm`).
        over_time: In transformers, whether three frames are joined ahead of the convolution.
        double: In transformers, whether one stands behind the attention as well as ahead of it.
    """

    routing: str = option("mlp", one_of("mlp", "attention"))
    routing_ratio: int = option(4, positive_integer)
    routing_kernels: tuple[int, ...] = option((3, 3), _odd_kernels)
    head_dim: int = option(64, positive_integer)
    temporal_pool: bool = option(True, one_of(False, True))
    over_time: bool = option(False, one_of(False, True))
    double: bool = option(False, one_of(False, True))


def _build(options: TAdaOptions, place: Place) -> TemporalLayer | None:
    """In the place of every spatial convolution, and of the norm behind it; ahead of attention.

    Attention over frames calibrates convolutions of as many channels out as in.
    """
    if place.slot == "norm" and options.temporal_pool:
        return PooledNorm(
            place.channels, ChannelNorm if isinstance(place.norm, nn.LayerNorm) else nn.BatchNorm2d
        )
    if place.slot == "before_attention" or (place.slot == "after_attention" and options.double):
        return TAdaAdapter(
            place.channels,
            options.routing_ratio,
            options.routing_kernels,
            options.head_dim,
            options.over_time,
            place.drop_path_rate,
        )
    conv = place.convolution
    if place.slot != "convolution" or conv is None:
        return None
    if options.routing == "attention":
        same = conv.in_channels == conv.out_channels
        sizes = (options.routing_ratio, options.routing_kernels, options.head_dim)
        return AttentionRoutedConv2d(conv, *sizes) if same else None
    layer = RoutedConv2d(calibrated(conv), options.routing_ratio, options.routing_kernels)
    layer.conv.reset_parameters()
    # Networks fold clips into channels_last frames: no kernel is reordered in a step.
    kernel = layer.conv.weight.detach().squeeze((0, 1)).contiguous(memory_format=torch.channels_last)
    layer.conv.weight.data = kernel[None, None]
    for part in (layer.rf.g, layer.rf.a):
        # As the released networks draw their convolutions; alone, a routing function has torch's own start.
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        assert part.bias is not None
        nn.init.zeros_(part.bias)
    return layer


TADA = register_family(Family("tada", TAdaOptions, _build))
