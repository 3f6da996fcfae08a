"""Convolutions whose kernel is calibrated for each frame, and one made of an ordinary convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.layers.tada.frames import check_clip, fold, mean_of_neighbours, silent, unfold
from dtf.layers.tada.routing import RouteFuncTransformer

CalDim = Literal["cin", "cout"]
Sizes = int | Sequence[int]


class _Calibrated(nn.Module):
    """What calibrated convolutions share: their sizes, kernel and bias.

    The kernel and the bias start as those of an ordinary convolution, uniform within 1 / sqrt(fan) with the
    fan of one output, C / groups * kh * kw. (The released code counts the outputs as well, so that its fresh
    kernels are sqrt(outputs) times smaller.)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        cal_dim: CalDim = "cin",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if cal_dim not in ("cin", "cout"):
            raise ValueError(f"{name}: cal_dim must be 'cin' or 'cout', got {cal_dim!r}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels {in_channels} and out_channels {out_channels}, "
                f"got {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.padding = self._sizes("padding", padding, 0)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.groups = groups
        self.cal_dim = cal_dim
        kernel = torch.empty(out_channels, in_channels // groups, *self._taps())
        self.weight = nn.Parameter(kernel[None, None])
        self.bias = nn.Parameter(torch.empty(1, 1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws kernel and bias anew."""
        bound = self.weight[0, 0, 0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _taps(self) -> tuple[int, ...]:
        """Sides of the kernel that is stored."""
        return self.kernel_size[1:]

    def _sizes(self, name: str, value: Sizes, alone: int) -> tuple[int, int, int]:
        """Time, height, width; one number is that of height and width."""
        sizes = (alone, value, value) if isinstance(value, int) else tuple(value)
        if len(sizes) != 3 or sizes[0] != alone or min(sizes) < alone:
            raise ValueError(
                f"{type(self).__name__}: {name} must be ({alone}, height, width) or one number, got {value!r}"
            )
        return sizes

    def _check(self, x: Tensor, **calibrations: Tensor | None) -> None:
        name = type(self).__name__
        check_clip(name, x, self.in_channels)
        channels = {"alpha": self.in_channels if self.cal_dim == "cin" else self.out_channels}
        for key, value in calibrations.items():
            wanted = (x.shape[0], channels.get(key, self.out_channels), x.shape[2], 1, 1)
            if value is not None and tuple(value.shape) != wanted:
                raise ValueError(
                    f"{name}: {key} must be {wanted} for x {tuple(x.shape)} and cal_dim {self.cal_dim!r}, "
                    f"got {tuple(value.shape)}"
                )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, cal_dim={self.cal_dim!r}"
        )


class _OfFrames(_Calibrated):
    """Calibrated convolutions of each frame by itself."""

    def on_frames(self, frames: Tensor, alpha: Tensor, beta: Tensor | None = None) -> Tensor:
        """Folded frames (B*T, C, H, W), alpha and beta (B*T, C or out_channels, 1, 1) -> (B*T, ..., H', W').

        Beta scales the bias.
        """
        alpha = alpha.to(frames.dtype)
        bias = None if self.bias is None else self.bias.flatten()
        cin = self.cal_dim == "cin"
        y = F.conv2d(
            frames * alpha if cin else frames,
            self.weight.squeeze((0, 1)),
            bias if cin and beta is None else None,
            self.stride[1:],
            self.padding[1:],
            self.dilation[1:],
            self.groups,
        )
        if not cin:
            y = y * alpha.to(y.dtype)
        if bias is not None and not (cin and beta is None):
            bias = bias.to(y.dtype)[:, None, None]
            y = y + (bias if beta is None else bias * beta.to(y.dtype))
        return y


class TAdaConv2d(_OfFrames):
    """A convolution of each frame whose kernel is calibrated for the frame (V1).

    ``cin``: the kernel of frame t is ``W[o, c] * alpha[c, t]``; ``cout``: ``W[o, c] * alpha[o, t]``. Computed
    exactly, as one convolution W of frames scaled by alpha, or of frames whose results are. The bias is not
    calibrated.

    Args:
        in_channels: Channels C.
        out_channels: Channels of the result.
        kernel_size: (1, height, width) or one number for both.
        stride: (1, height, width) or one number for both.
        padding: (0, height, width) or one number for both.
        dilation: (1, height, width) or one number for both.
        groups: As of a convolution; with any ``cal_dim``.
        bias: Whether a bias is added.
        cal_dim: ``cin`` or ``cout``, whose channels are calibrated.

    Shape:
        x (B, C, T, H, W), alpha (B, C or out_channels, T, 1, 1) -> (B, out_channels, T, H', W'), any T, any
        memory layout (fastest: channels_last_3d), same dtype. ``weight`` is (1, 1, out_channels, C / groups,
        kh, kw), ``bias`` (1, 1, out_channels).

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        self._check(x, alpha=alpha)
        return unfold(self.on_frames(fold(x), fold(alpha)), x.shape[0], x.shape[2])


class TAdaConv3d(_Calibrated):
    """A convolution over frames and pixels whose whole kernel is calibrated for the frame of its result.

    The frames ``t - kt // 2 ... t + kt // 2`` meet the kernel of frame t; beyond the clip is zero. As in the
    released code T stays as it is: the padding over time is always kt // 2, whatever is given.

    Args:
        in_channels: Channels C.
        out_channels: Channels of the result.
        kernel_size: (time, height, width), time odd; one number for all three.
        stride: (1, height, width) or one number for both.
        padding: (any, height, width) or one number for both.
        dilation: (1, height, width) or one number for both.
        groups: As of a convolution; with any ``cal_dim``.
        bias: Whether a bias is added; it is not calibrated.
        cal_dim: ``cin`` or ``cout``, whose channels are calibrated.

    Shape:
        As :class:`TAdaConv2d`, with ``weight`` (1, 1, out_channels, C / groups, kt, kh, kw).

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def _taps(self) -> tuple[int, ...]:
        return self.kernel_size

    def _sizes(self, name: str, value: Sizes, alone: int) -> tuple[int, int, int]:
        if name == "kernel_size":
            sizes = (value, value, value) if isinstance(value, int) else tuple(value)
            if len(sizes) != 3 or min(sizes) < 1 or sizes[0] % 2 == 0:
                raise ValueError(
                    "TAdaConv3d: kernel_size must be (odd number of frames, height, width) or one odd "
                    f"number, got {value!r}"
                )
            return sizes
        if name == "padding" and not isinstance(value, int):
            value = (0, *value[1:])
        return super()._sizes(name, value, alone)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        self._check(x, alpha=alpha)
        alpha = alpha.to(x.dtype)
        clips, steps, frames = x.shape[0], x.shape[2], self.kernel_size[0]
        bias = None if self.bias is None else self.bias.flatten()
        where = (self.padding, self.dilation, self.groups)
        if self.cal_dim == "cout":
            padding = (frames // 2, *self.padding[1:])
            y = F.conv3d(x, self.weight.squeeze((0, 1)), None, self.stride, padding, *where[1:])
            y = y * alpha.to(y.dtype)
            return y if bias is None else y + bias.to(y.dtype)[:, None, None, None]
        # The frames around t as channels of frame t, c * kt + tap, so that groups stay together.
        around = F.pad(x, (0, 0, 0, 0, frames // 2, frames // 2))
        taps = torch.stack([around[:, :, tap : tap + steps] for tap in range(frames)], dim=2)
        folded = fold((taps * alpha[:, :, None]).flatten(1, 2))
        kernel = self.weight.squeeze((0, 1)).flatten(1, 2)
        y = F.conv2d(folded, kernel, bias, self.stride[1:], self.padding[1:], self.dilation[1:], self.groups)
        return unfold(y, clips, steps)


class TAdaConv2dV2(_OfFrames):
    """A convolution of each frame whose kernel and bias are calibrated for the frame (V2).

    Beyond :class:`TAdaConv2d` it may hold its own routing function (``rf_func``, whose alpha and beta are
    small numbers around 0), calibrates the bias, and may add what neighbouring frames have:
    ``bn_a(y) + bn_b(mean of y at t - 1, t, t + 1)``, with ``bn_b`` starting at zero, flagged ``skip_init``
    (:func:`mean_of_neighbours`).

    The kernel and all convolutions of the routing function start normal with deviation 0.02, biases at zero.

    Args:
        in_channels: Channels C.
        out_channels: Channels of the result.
        kernel_size: (1, height, width) or one number for both.
        stride: (1, height, width) or one number for both.
        padding: (0, height, width) or one number for both.
        dilation: (1, height, width) or one number for both.
        groups: As of a convolution; with any ``cal_dim``.
        bias: Whether a bias is added.
        cal_dim: ``cin`` or ``cout``, whose channels are calibrated.
        num_frames: T of clips that come as tokens.
        rf_r: Ratio of the routing function.
        rf_k: Kernels of the routing function.
        head_dim: Of the routing function.
        internal_rf_func: Whether it holds its own routing function; as many channels out as in.
        internal_temp_aggr: Whether it adds what neighbouring frames have.

    Shape:
        (B, C, T, H, W) -> (B, out_channels, T, H', W'). With ``reshape_required`` tokens (L, B*T, C), the L
        places of a square row by row, frames of a clip following each other -> (L, B*T, out_channels); the
        convolution must keep H and W. Same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        cal_dim: CalDim = "cin",
        num_frames: int | None = None,
        rf_r: float = 4,
        rf_k: Sequence[int] = (3, 3),
        head_dim: int = 64,
        internal_rf_func: bool = True,
        internal_temp_aggr: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, cal_dim
        )
        if internal_rf_func and in_channels != out_channels:
            raise ValueError(
                "TAdaConv2dV2: its own routing function needs as many channels out as in, got "
                f"{in_channels} and {out_channels}; use internal_rf_func=False and pass w_alpha"
            )
        self.num_frames = num_frames
        self.rf_func = None
        if internal_rf_func:
            self.rf_func = RouteFuncTransformer(out_channels, rf_r, rf_k, bias, False, head_dim)
            narrow(self.rf_func)
        self.bn_a = nn.BatchNorm2d(out_channels) if internal_temp_aggr else None
        self.bn_b = silent(nn.BatchNorm2d(out_channels)) if internal_temp_aggr else None

    def reset_parameters(self) -> None:
        """Draws the kernel anew, normal with deviation 0.02, and sets the bias to zero."""
        _draw_narrow(self.weight, self.bias)

    def forward(
        self,
        feat: Tensor,
        w_alpha: Tensor | None = None,
        b_alpha: Tensor | None = None,
        reshape_required: bool = False,
    ) -> Tensor:
        """Applies the convolution.

        Args:
            feat: A clip, or tokens with ``reshape_required``.
            w_alpha: (B, C or out_channels, T, 1, 1), where it holds no routing function.
            b_alpha: (B, out_channels, T, 1, 1), likewise; ``None``: the bias is not calibrated.
            reshape_required: Whether ``feat`` are tokens.
        """
        x = self._clip_of(feat) if reshape_required else feat
        check_clip("TAdaConv2dV2", x, self.in_channels)
        if (self.rf_func is None) == (w_alpha is None):
            needs = "was built with a routing function of its own: pass no" if self.rf_func else "needs"
            raise ValueError(f"TAdaConv2dV2 {needs} w_alpha")
        if self.rf_func is not None:
            w_alpha, b_alpha = self.rf_func.calibrations(x)
        assert w_alpha is not None
        self._check(x, alpha=w_alpha, b_alpha=b_alpha)
        clips, steps = x.shape[0], x.shape[2]
        beta = None if b_alpha is None else fold(b_alpha)
        y = self.on_frames(fold(x), fold(w_alpha), beta)
        if self.bn_a is not None and self.bn_b is not None:
            y = self.bn_a(y) + self.bn_b(mean_of_neighbours(y, steps))
        if not reshape_required:
            return unfold(y, clips, steps)
        if y.shape[2:] != x.shape[3:]:
            raise ValueError(
                f"TAdaConv2dV2: tokens need a convolution that keeps {tuple(x.shape[3:])} places, got "
                f"{tuple(y.shape[2:])}; use stride 1 and padding dilation * (kernel_size - 1) / 2"
            )
        return y.flatten(2).permute(2, 0, 1)

    def _clip_of(self, tokens: Tensor) -> Tensor:
        """(L, B*T, C) -> (B, C, T, H, W)."""
        steps = self.num_frames or 0
        side = round(tokens.shape[0] ** 0.5)
        if tokens.dim() != 3 or side**2 != tokens.shape[0] or steps < 1 or tokens.shape[1] % steps:
            raise ValueError(
                "TAdaConv2dV2 takes tokens (H*H, B*num_frames, C), got "
                f"{tuple(tokens.shape)} and num_frames={self.num_frames}"
            )
        frames = tokens.permute(1, 2, 0).unflatten(2, (side, side))
        return unfold(frames, tokens.shape[1] // steps, steps)


def narrow(module: nn.Module) -> None:
    """Draws its convolutions and matrices anew, as V2 does, but for those flagged ``skip_init``."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.Linear) and not getattr(part, "skip_init", False):
            _draw_narrow(part.weight, part.bias)


def _draw_narrow(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.trunc_normal_(weight, std=0.02)
    if bias is not None:
        nn.init.zeros_(bias)


def calibrated(conv: nn.Conv2d | nn.Conv3d) -> TAdaConv2d:
    """An ordinary convolution of frames with its weights, to be calibrated."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"padding must be numbers of zeros, got {conv.padding!r} {conv.padding_mode!r}")
    sizes: list[tuple[int, ...]] = [conv.kernel_size, conv.stride, conv.padding, conv.dilation]
    if isinstance(conv, nn.Conv3d):
        over_time = [size[0] for size in sizes]
        if over_time != [1, 1, 0, 1]:
            raise ValueError(
                "over time kernel, stride, padding and dilation must be 1, 1, 0 and 1, got "
                f"{', '.join(map(str, over_time))}"
            )
        sizes = [size[1:] for size in sizes]
    kernel, stride, padding, dilation = sizes
    bias = conv.bias
    made = TAdaConv2d(
        conv.in_channels,
        conv.out_channels,
        (1, *kernel),
        (1, *stride),
        (0, *padding),
        (1, *dilation),
        conv.groups,
        bias is not None,
    )
    with torch.no_grad():
        made.weight.copy_(conv.weight.detach().view_as(made.weight))
        if bias is not None and made.bias is not None:
            made.bias.copy_(bias.detach().view_as(made.bias))
    made.weight.requires_grad_(conv.weight.requires_grad)
    if bias is not None and made.bias is not None:
        made.bias.requires_grad_(bias.requires_grad)
    return made
