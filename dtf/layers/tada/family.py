"""The family's part in networks: what stands in the place of convolutions and norms, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtf.layers.options import Options, one_of, option, positive_integer
from dtf.layers.tada.convolutions import TAdaConv2d, calibrated
from dtf.layers.tada.frames import check_clip, fold, mean_of_neighbours, silent_norm, unfold
from dtf.layers.tada.routing import RouteFuncMLP
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
        changed = self.conv.on_frames(frames, alpha - 1, without_bias).float()
        energy = changed.square().mean(dim=1).unflatten(0, (-1, steps))
        labels = tuple(f"step {t}" for t in range(steps))
        return Maps("calibration", "what the calibration of each frame's kernel changes", energy, labels)

    def watched(self) -> dict[str, Tensor]:
        """The weight that starts at zero: how far kernels are calibrated."""
        return {"calibration": self.rf.b.weight}


class PooledNorm(TemporalLayer):
    """``norm(x) + pool_norm(mean of x at t - 1, t, t + 1)``: stands in the place of a batch norm of frames.

    ``pool_norm`` starts at zero, flagged ``skip_init``: a fresh one computes what the norm alone would. The
    mean counts zeros beyond the clip (:func:`mean_of_neighbours`), for any T.

    Args:
        channels: C.

    Shape:
        (B, C, T, H, W) -> same shape and dtype.
    """

    family = "tada"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.pool_norm = silent_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        clips, steps, frames = x.shape[0], x.shape[2], fold(x)
        y = self.norm(frames) + self.pool_norm(mean_of_neighbours(frames, steps))
        return unfold(y, clips, steps)

    def fresh_names(self) -> set[str]:
        """Those of the second norm."""
        return {f"pool_norm.{name}" for name in self.pool_norm.state_dict()}

    def fresh_norms(self) -> list[nn.Module]:
        """The second norm."""
        return [self.pool_norm]

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
        routing_ratio: Channels of a convolution over those within its routing function.
        routing_kernels: Frames that the two convolutions of a routing function see.
        temporal_pool: Whether what neighbouring frames have is added behind it (:class:`PooledNorm`).
    """

    routing_ratio: int = option(4, positive_integer)
    routing_kernels: tuple[int, ...] = option((3, 3), _odd_kernels)
    temporal_pool: bool = option(True, one_of(False, True))


def _build(options: TAdaOptions, place: Place) -> TemporalLayer | None:
    """In the place of every spatial convolution, and of the norm behind it."""
    if place.slot == "norm" and options.temporal_pool:
        return PooledNorm(place.channels)
    if place.slot != "convolution" or place.convolution is None:
        return None
    layer = RoutedConv2d(calibrated(place.convolution), options.routing_ratio, options.routing_kernels)
    layer.conv.reset_parameters()
    # Networks fold clips into channels_last frames: no kernel is reordered in a step.
    kernel = layer.conv.weight.detach().squeeze((0, 1)).contiguous(memory_format=torch.channels_last)
    layer.conv.weight.data = kernel[None, None]
    for conv in (layer.rf.g, layer.rf.a):
        # As the released networks draw their convolutions; alone, a routing function has torch's own start.
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    return layer


TADA = register_family(Family("tada", TAdaOptions, _build))
