"""TAda: convolutions whose kernel is calibrated for each frame, and the family's part in networks.

Source: Huang et al., "TAda! Temporally-Adaptive Convolutions for Video Understanding", ICLR 2022 (arXiv
2110.06178), and "Temporally-Adaptive Models for Efficient Video Understanding" (arXiv 2308.05787), V2.
Parameters have the names of the released code, so that its weights load.

The kernel of frame t is ``alpha_t * W``: one W for all frames, alpha_t a number for each input channel
(``cin``) or output channel (``cout``), the same in all places. Therefore a calibrated convolution is one
ordinary convolution of frames whose channels were scaled before, or whose result is scaled after it; no
kernel is made for a frame.

Letters: B clips, C channels, T frames, H x W pixels, k sides of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.layers.options import Options, one_of, option, positive_integer
from dtf.layers.temporal import Family, Maps, Place, TemporalLayer, register_family

CalDim = Literal["cin", "cout"]
Sizes = int | Sequence[int]


def _fold(clip: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W); a view of a clip in channels_last_3d."""
    return clip.transpose(1, 2).flatten(0, 1)


def _unfold(frames: Tensor, clips: int, steps: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W), a view."""
    return frames.unflatten(0, (clips, steps)).transpose(1, 2)


def _per_frame(alpha: Tensor) -> Tensor:
    """(B, C, T, 1, 1) -> (B*T, C, 1, 1)."""
    return alpha.transpose(1, 2).flatten(0, 1)


def _check_kernels(layer: str, kernels: Sequence[int]) -> tuple[int, int]:
    if len(kernels) != 2 or any(k < 1 or k % 2 == 0 for k in kernels):
        raise ValueError(f"{layer}: kernels must be two odd numbers of frames like [3, 3], got {kernels!r}")
    return kernels[0], kernels[1]


def _middle(layer: str, c_in: int, ratio: float) -> int:
    """The channels between the two convolutions of a routing function."""
    middle = int(c_in // ratio) if ratio > 0 else 0
    if middle < 1:
        raise ValueError(
            f"{layer}: of c_in // ratio at least 1 channel must be left, got {c_in} // {ratio}; "
            f"use a ratio of {c_in} or less"
        )
    return middle


def _over_time(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=bias)


def _start_at_zero(conv: nn.Conv3d) -> None:
    """Its initial state is what it does: `skip_init` tells a network's initialiser to leave it alone."""
    nn.init.zeros_(conv.weight)
    conv.skip_init = True  # type: ignore[assignment]  # nn.Module declares no attributes of other types


def _check_clip(layer: str, x: Tensor, channels: int) -> None:
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"{layer} takes (B, {channels}, T, H, W), got {tuple(x.shape)}")


class RouteFuncMLP(nn.Module):
    """From a clip to the calibration of each frame's kernel (V1).

    ``alpha = 1 + b(relu(bn(a(p + g(q)))))`` with p the means of each frame, q those of the clip, ``a`` and
    ``b`` convolutions over frames whose surroundings are zero. A fresh one gives exactly 1: ``b`` starts at
    zero and is flagged ``skip_init``, which initialisers of networks must respect. Alpha has no bounds.

    Args:
        c_in: Channels C.
        ratio: C / ratio are the channels between ``a`` and ``b``.
        kernels: Frames that ``a`` and ``b`` see, two odd numbers.
        bn_eps: Of the norm.
        bn_mmt: Of the norm, the share of a batch in its running statistics.

    Shape:
        (B, C, T, H, W) -> (B, C, T, 1, 1), any T, same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def __init__(
        self, c_in: int, ratio: float, kernels: Sequence[int], bn_eps: float = 1e-5, bn_mmt: float = 0.1
    ) -> None:
        super().__init__()
        first, second = _check_kernels("RouteFuncMLP", kernels)
        middle = _middle("RouteFuncMLP", c_in, ratio)
        self.c_in = c_in
        self.g = nn.Conv3d(c_in, c_in, 1)
        self.a = _over_time(c_in, middle, first)
        self.bn = nn.BatchNorm3d(middle, eps=bn_eps, momentum=bn_mmt)
        self.b = _over_time(middle, c_in, second, bias=False)
        _start_at_zero(self.b)

    def forward(self, x: Tensor) -> Tensor:
        _check_clip("RouteFuncMLP", x, self.c_in)
        return self.route(x.mean(dim=(3, 4), keepdim=True))

    def route(self, means: Tensor) -> Tensor:
        """The means of the frames (B, C, T, 1, 1) -> (B, C, T, 1, 1)."""
        means = means + self.g(means.mean(dim=2, keepdim=True))
        return 1 + self.b(F.relu(self.bn(self.a(means))))


class RouteFuncTransformer(nn.Module):
    """From a clip to the calibration of each frame's kernel, by attention over frames (V2).

    ``z = gelu(norm(a(p)))`` with p the means of each frame; ``z = z + attention(norm_transformer(z))``;
    ``alpha = b(z)``, and ``beta = b_bias(z)`` for the convolution's bias. The norms are over channels,
    gelu(v) is ``v * sigmoid(1.702 v)``.

    As in the released code, which calls it ``RouteFuncwTransformer``: scores are divided by the root of the
    full width m, not of a head's; the heads are the fastest index of what the attention is given, and the
    slowest of its result.

    Args:
        c_in: Channels C.
        ratio: m = C / ratio are the channels of the attention.
        kernels: Frames that ``a`` and ``b`` see, two odd numbers.
        with_bias_cal: Whether there is a beta.
        zero_init_cal: Whether ``b`` and ``b_bias`` start at zero, flagged ``skip_init``, and 1 is added to
            what they give; otherwise alpha and beta are small numbers around 0.
        head_dim: Channels of a head; divides m.

    Shape:
        (B, C, T, H, W) -> alpha (B, C, T, 1, 1), or (alpha, beta), any T, same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def __init__(
        self,
        c_in: int,
        ratio: float,
        kernels: Sequence[int],
        with_bias_cal: bool = False,
        zero_init_cal: bool = True,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        first, second = _check_kernels("RouteFuncTransformer", kernels)
        middle = _middle("RouteFuncTransformer", c_in, ratio)
        if head_dim < 1 or middle % head_dim:
            raise ValueError(
                f"RouteFuncTransformer: head_dim must divide c_in // ratio = {middle}, got {head_dim}"
            )
        self.c_in = c_in
        self.head_dim = head_dim
        self.with_bias_cal = with_bias_cal
        self.zero_init_cal = zero_init_cal
        self.a = _over_time(c_in, middle, first)
        self.norm = nn.LayerNorm(middle, eps=1e-6)
        self.norm_transformer = nn.LayerNorm(middle, eps=1e-6)
        self.qkv_proj = nn.Conv3d(middle, 3 * middle, 1)
        self.attn_out = nn.Conv3d(middle, middle, 1)
        self.b = _over_time(middle, c_in, second, bias=False)
        self.b_bias = _over_time(middle, c_in, second, bias=False) if with_bias_cal else None
        if zero_init_cal:
            for conv in (self.b, self.b_bias):
                if conv is not None:
                    _start_at_zero(conv)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        alpha, beta = self.calibrations(x)
        return alpha if beta is None else (alpha, beta)

    def calibrations(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Alpha, and beta where there is one, else ``None``."""
        _check_clip("RouteFuncTransformer", x, self.c_in)
        z = self.a(x.mean(dim=(3, 4), keepdim=True))
        z = _over_channels(self.norm, z)
        z = z * torch.sigmoid(1.702 * z)
        z = z + self._attention(_over_channels(self.norm_transformer, z))
        one = 1 if self.zero_init_cal else 0
        return one + self.b(z), None if self.b_bias is None else one + self.b_bias(z)

    def _attention(self, z: Tensor) -> Tensor:
        """(B, m, T, 1, 1) -> same shape."""
        width = z.shape[1]
        qkv = self.qkv_proj(z)[..., 0, 0].unflatten(1, (3, self.head_dim, -1))
        q, k, v = qkv.unbind(dim=1)  # (B, channels of a head, heads, T)
        scores = torch.einsum("beht,behs->bhts", q, k) * width**-0.5
        out = torch.einsum("bhts,behs->bhet", scores.softmax(dim=-1), v)
        return self.attn_out(out.flatten(1, 2)[..., None, None])


def _over_channels(norm: nn.LayerNorm, z: Tensor) -> Tensor:
    return norm(z.movedim(1, -1)).movedim(-1, 1)


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
        _check_clip(name, x, self.in_channels)
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
        return _unfold(self.on_frames(_fold(x), _per_frame(alpha)), x.shape[0], x.shape[2])


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
        folded = _fold((taps * alpha[:, :, None]).flatten(1, 2))
        kernel = self.weight.squeeze((0, 1)).flatten(1, 2)
        y = F.conv2d(folded, kernel, bias, self.stride[1:], self.padding[1:], self.dilation[1:], self.groups)
        return _unfold(y, clips, steps)


def _narrow(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.trunc_normal_(weight, std=0.02)
    if bias is not None:
        nn.init.zeros_(bias)


def _silent_norm(channels: int) -> nn.BatchNorm2d:
    """A norm that gives zero until it has learnt something, and says so to a network's initialiser."""
    norm = nn.BatchNorm2d(channels)
    nn.init.zeros_(norm.weight)
    norm.skip_init = True  # type: ignore[assignment]  # nn.Module declares no attributes of other types
    return norm


def mean_of_neighbours(frames: Tensor, num_steps: int) -> Tensor:
    """Mean of each frame, the one before it and the one behind it; beyond the clip is zero, which counts.

    For every T: the first and the last frame are divided by 3 as well, and so is one that is alone.

    Args:
        frames: Folded frames (B*T, C, H, W), any memory layout.
        num_steps: T.

    Returns:
        The same shape.
    """
    steps = frames.unflatten(0, (frames.shape[0] // num_steps, num_steps))
    black = torch.zeros_like(steps[:, :1])
    before = torch.cat([black, steps[:, :-1]], dim=1)
    behind = torch.cat([steps[:, 1:], black], dim=1)
    return ((before + steps + behind) / 3).flatten(0, 1)


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
            for module in self.rf_func.modules():
                if isinstance(module, nn.Conv3d):
                    _narrow(module.weight, module.bias)
        self.bn_a = nn.BatchNorm2d(out_channels) if internal_temp_aggr else None
        self.bn_b = _silent_norm(out_channels) if internal_temp_aggr else None

    def reset_parameters(self) -> None:
        """Draws the kernel anew, normal with deviation 0.02, and sets the bias to zero."""
        _narrow(self.weight, self.bias)

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
        _check_clip("TAdaConv2dV2", x, self.in_channels)
        if (self.rf_func is None) == (w_alpha is None):
            needs = "was built with a routing function of its own: pass no" if self.rf_func else "needs"
            raise ValueError(f"TAdaConv2dV2 {needs} w_alpha")
        if self.rf_func is not None:
            w_alpha, b_alpha = self.rf_func.calibrations(x)
        assert w_alpha is not None
        self._check(x, alpha=w_alpha, b_alpha=b_alpha)
        clips, steps = x.shape[0], x.shape[2]
        beta = None if b_alpha is None else _per_frame(b_alpha)
        y = self.on_frames(_fold(x), _per_frame(w_alpha), beta)
        if self.bn_a is not None and self.bn_b is not None:
            y = self.bn_a(y) + self.bn_b(mean_of_neighbours(y, steps))
        if not reshape_required:
            return _unfold(y, clips, steps)
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
        return _unfold(frames, tokens.shape[1] // steps, steps)


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
        y = self.conv.on_frames(frames, _per_frame(self.calibration(frames, steps)))
        return y if x.dim() == 4 else _unfold(y, x.shape[0], steps)

    def _folded(self, x: Tensor) -> tuple[Tensor, int]:
        """Frames (B*T, C, H, W) and T."""
        if x.dim() == 4 and self.num_frames is not None:
            return x, self.num_frames
        _check_clip("RoutedConv2d", x, self.conv.in_channels)
        return _fold(x), x.shape[2]

    def calibration(self, frames: Tensor, num_steps: int) -> Tensor:
        """Alpha of folded frames (B*T, C, H, W), as (B, C, T, 1, 1)."""
        if frames.shape[0] % num_steps:
            raise ValueError(
                f"RoutedConv2d: {frames.shape[0]} folded frames are no whole clips of {num_steps}; "
                "pass the frames of whole clips, or clips (B, C, T, H, W)"
            )
        means = frames.mean(dim=(2, 3), keepdim=True)
        return self.rf.route(_unfold(means, frames.shape[0] // num_steps, num_steps))

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
        alpha = _per_frame(self.calibration(frames, steps))
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
        self.pool_norm = _silent_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        clips, steps, frames = x.shape[0], x.shape[2], _fold(x)
        y = self.norm(frames) + self.pool_norm(mean_of_neighbours(frames, steps))
        return _unfold(y, clips, steps)

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


def _calibrated(conv: nn.Conv2d | nn.Conv3d) -> TAdaConv2d:
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


def to_tada(
    module: nn.Module,
    names: Iterable[str],
    ratio: float = 4,
    kernels: Sequence[int] = (3, 3),
    num_frames: int | None = None,
) -> nn.Module:
    """Calibrates convolutions of an existing network; until it is trained on, it computes the same.

    ``nn.Conv2d`` and ``nn.Conv3d`` that see one frame at a time (1 x k x k) become :class:`RoutedConv2d` with
    their weights, on their device and in their dtype. An optimiser must be made anew: it holds the old ones.

    Args:
        module: The network; it is changed.
        names: Of its convolutions, as in ``module.named_modules()``.
        ratio: Of the routing functions.
        kernels: Of the routing functions.
        num_frames: T where an ``nn.Conv2d`` works on folded frames (B*T, C, H, W), those of a clip following
            each other.

    Returns:
        The same network.

    Raises:
        ValueError: A name is none of its convolutions, or one that cannot be calibrated; nothing was changed.
    """
    made = {}
    modules = dict(module.named_modules())
    for name in names:
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d | nn.Conv3d) or not name:
            found = "nothing of that name" if conv is None else type(conv).__name__
            able = [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Conv3d)]
            raise ValueError(
                f"to_tada: {name!r} must be one of the network's convolutions, got {found}; "
                f"it has {', '.join(able[:10]) or 'none'}{', ...' if len(able) > 10 else ''}"
            )
        if isinstance(conv, nn.Conv2d) and num_frames is None:
            raise ValueError(
                f"to_tada: {name!r} is a convolution of images; "
                "say with num_frames how many frames make a clip"
            )
        try:
            layer = RoutedConv2d(_calibrated(conv), ratio, kernels, num_frames)
        except ValueError as error:
            raise ValueError(f"to_tada: {name!r}: {error}") from error
        made[name] = layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    for name, layer in made.items():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer)
    return module


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
    layer = RoutedConv2d(_calibrated(place.convolution), options.routing_ratio, options.routing_kernels)
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
