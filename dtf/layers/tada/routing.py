"""Routing functions: from a clip to the calibration of each frame's kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.layers.tada.frames import check_clip


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
        check_clip("RouteFuncMLP", x, self.c_in)
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
        check_clip("RouteFuncTransformer", x, self.c_in)
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


def _over_channels(norm: nn.LayerNorm, z: Tensor) -> Tensor:
    return norm(z.movedim(1, -1)).movedim(-1, 1)


def _start_at_zero(conv: nn.Conv3d) -> None:
    """Its initial state is what it does: `skip_init` tells a network's initialiser to leave it alone."""
    nn.init.zeros_(conv.weight)
    conv.skip_init = True  # type: ignore[assignment]  # nn.Module declares no attributes of other types
