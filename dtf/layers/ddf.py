"""DDF: decoupled dynamic filters in the place of a convolution, and the family's part in networks.

Source: Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021 (arXiv 2104.14107). Parameters have the
names of the released code, so that its weights load.

Letters: B images or clips, C channels, T frames, H x W pixels, K side of a filter, s stride, u factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dtf.layers.options import Options, one_of, option, positive_integer, positive_number
from dtf.layers.temporal import Family, Kernels, Maps, Place, TemporalLayer, register_family
from dtf.ops import decoupled_dynamic_filter
from dtf.ops.checks import check_choice, check_positive, check_window
from dtf.ops.common.window import accumulation_dtype, offsets
from dtf.ops.decoupled_dynamic_filter import Combine
from dtf.ops.dispatch import BackendName

SizeRule = Literal["ceil", "floor"]


class FilterNorm(nn.Module):
    """Normalises generated filters over their own K*K taps, then rescales them.

    ``out = (x - mean) / (std + 1e-10) * scale``, with the unbiased deviation. The filters of one tap (K = 1)
    have no deviation and are rescaled alone (in the released code they become NaN).

    Statistics are float32 (float64 for float64) whatever the input's dtype is, also under autocast; there is
    no product that could run in TF32.

    Args:
        in_channels: Number m of filters.
        kernel_size: Side K of a filter, odd.
        filter_type: ``spatial`` for filters of positions, ``channel`` for filters of channels.
        nonlinearity: Scales start at its gain (:func:`torch.nn.init.calculate_gain`) / K.
        running_std: Whether the scales are learnt, one for each tap, drawn from a normal distribution of
            that deviation (``std``); otherwise all are that number, and in no state dict.
        running_mean: Whether a learnt shift (``mean``) is added, drawn from the standard normal distribution.
            Despite their names neither is a running average.

    Shape:
        ``spatial``: (B, m*K*K, H, W) -> same. ``channel``: (B, m*K*K, 1, 1) -> (B, m*K*K). Same dtype.

    Raises:
        ValueError: Another type, or an input of another size.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filter_type: Literal["spatial", "channel"],
        nonlinearity: str = "linear",
        running_std: bool = False,
        running_mean: bool = False,
    ) -> None:
        super().__init__()
        if filter_type not in ("spatial", "channel"):
            raise ValueError(f"FilterNorm: filter_type must be 'spatial' or 'channel', got {filter_type!r}")
        check_positive("FilterNorm", in_channels=in_channels)
        check_window("FilterNorm", kernel_size, 1)
        self.in_channels = in_channels
        self.num_taps = kernel_size**2
        self.filter_type = filter_type
        gain: Any = nonlinearity  # the names that torch's types list are those of its version
        self.scale = nn.init.calculate_gain(gain) / kernel_size
        taps = in_channels * self.num_taps
        self.std = nn.Parameter(torch.randn(taps) * self.scale) if running_std else None
        self.mean = nn.Parameter(torch.randn(taps)) if running_mean else None

    def extra_repr(self) -> str:
        learnt = [name for name in ("std", "mean") if getattr(self, name) is not None]
        return f"{self.in_channels}, taps={self.num_taps}, {self.filter_type}, learnt={learnt}"

    def forward(self, x: Tensor) -> Tensor:
        taps = self.in_channels * self.num_taps
        if x.dim() != 4 or x.shape[1] != taps or (self.filter_type == "channel" and x.shape[2:] != (1, 1)):
            sides = "1, 1" if self.filter_type == "channel" else "H, W"
            raise ValueError(f"FilterNorm takes (B, {taps}, {sides}), got {tuple(x.shape)}")
        filters = x.to(accumulation_dtype(x)).unflatten(1, (self.in_channels, self.num_taps))
        if self.num_taps > 1:
            filters = filters - filters.mean(dim=2, keepdim=True)
            # Unlike that of a square root, its gradient is zero where all taps are alike.
            std = torch.linalg.vector_norm(filters, dim=2, keepdim=True) / (self.num_taps - 1) ** 0.5
            filters = filters / (std + 1e-10)
        filters = filters.flatten(1, 2)
        scale = self.scale if self.std is None else self.std.to(filters.dtype).view(-1, 1, 1)
        filters = filters * scale
        if self.mean is not None:
            filters = filters + self.mean.to(filters.dtype).view(-1, 1, 1)
        filters = filters.to(x.dtype)
        return filters.flatten(1) if self.filter_type == "channel" else filters


def _check_widths(layer: str, in_channels: int, head: int, se_ratio: float) -> int:
    """Returns the channels between the two convolutions of a channel branch."""
    check_positive(layer, in_channels=in_channels, head=head)
    if in_channels % head:
        allowed = [n for n in range(1, in_channels + 1) if in_channels % n == 0]
        raise ValueError(
            f"{layer}: head must divide in_channels {in_channels}, got {head}; allowed: {allowed}"
        )
    middle = int(in_channels * se_ratio)
    if middle < 1:
        raise ValueError(
            f"{layer}: in_channels * se_ratio must be at least 1, got {in_channels} * {se_ratio}; "
            f"use se_ratio={1 / in_channels:.3g} or more"
        )
    return middle


def _channel_branch(in_channels: int, middle: int, kernel_size: int, nonlinearity: str) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(in_channels, middle, 1),
        nn.ReLU(),
        nn.Conv2d(middle, in_channels * kernel_size**2, 1),
        FilterNorm(in_channels, kernel_size, "channel", nonlinearity, running_std=True),
    )


def _filter(
    x: Tensor,
    by_channel: Tensor,
    by_pixel: Tensor,
    head: int,
    window: tuple[int, int, int, Combine],
    backend: BackendName,
) -> Tensor:
    """The operator with a filter of the pixels for each head, which is folded into the batch.

    Args:
        x: (B, C, H, W).
        by_channel: (B, C*K*K).
        by_pixel: (B, head*K*K, H', W').
        head: Number of heads, each of C / head channels that follow each other.
        window: (kernel_size, dilation, stride, combine).
        backend: Of the operator.
    """
    side = (window[0], window[0])
    by_channel = by_channel.to(x.dtype).unflatten(1, (x.shape[1], *side))
    by_pixel = by_pixel.to(x.dtype)
    if head == 1:
        return decoupled_dynamic_filter(x, by_channel, by_pixel, *window, backend=backend)
    x, by_channel, by_pixel = (v.unflatten(1, (head, -1)).flatten(0, 1) for v in (x, by_channel, by_pixel))
    y = decoupled_dynamic_filter(x, by_channel, by_pixel, *window, backend=backend)
    return y.unflatten(0, (-1, head)).flatten(1, 2)


class DDFPack(TemporalLayer):
    """Filters every channel with a filter of its own and one of the pixel, both predicted from the input.

    Stands in the place of a K x K convolution of as many channels, with far fewer parameters. The filter of
    a channel is predicted from the means of all channels, that of a pixel from the pixel; both are normalised
    (:class:`FilterNorm`) and multiplied or added tap by tap.

    A clip is filtered frame by frame. With ``clip_filter`` its frames share their channels' filters,
    predicted from the means over the clip (this option is ours; it is the only way in which frames see each
    other).

    Args:
        in_channels: Channels C, of the input and of the result.
        kernel_size: Side K of the filters, odd; 1 scales every value by two predicted numbers (the released
            code needs more than 1).
        stride: Distance of neighbouring windows.
        dilation: Distance of neighbouring taps.
        head: Filters of a pixel, each for C / head channels that follow each other.
        se_ratio: Of C, the channels between the two convolutions that predict the channels' filters.
        nonlinearity: What follows, for the first scale of the filters (:class:`FilterNorm`).
        kernel_combine: ``mul`` or ``add``.
        size_rule: Where the stride does not divide H or W: ``ceil`` gives H / stride rounded up, as the
            convolution that it replaces, ``floor`` rounds down (the released code takes no such sizes).
        clip_filter: Whether the frames of a clip share their channels' filters.
        backend: Backend of the operator.

    Shape:
        (B, C, H, W) -> (B, C, H', W'), or a clip (B, C, T, H, W) -> (B, C, T, H', W'); any memory layout,
        same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    family = "ddf"

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "relu",
        kernel_combine: Combine = "mul",
        *,
        size_rule: SizeRule = "ceil",
        clip_filter: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        middle = _check_widths("DDFPack", in_channels, head, se_ratio)
        check_positive("DDFPack", stride=stride)
        check_window("DDFPack", kernel_size, dilation)
        check_choice("DDFPack", ("mul", "add"), kernel_combine=kernel_combine)
        check_choice("DDFPack", ("ceil", "floor"), size_rule=size_rule)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.head = head
        self.kernel_combine: Combine = kernel_combine
        self.size_rule = size_rule
        self.clip_filter = clip_filter
        self.backend: BackendName = backend
        self.spatial_branch = nn.Sequential(
            nn.Conv2d(in_channels, head * kernel_size**2, 1, stride),
            FilterNorm(head, kernel_size, "spatial", nonlinearity),
        )
        self.channel_branch = _channel_branch(in_channels, middle, kernel_size, nonlinearity)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, head={self.head}, kernel_combine={self.kernel_combine!r}, "
            f"size_rule={self.size_rule!r}, clip_filter={self.clip_filter}, backend={self.backend!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (4, 5) or x.shape[1] != self.in_channels:
            raise ValueError(
                f"DDFPack takes (B, {self.in_channels}, H, W) or (B, {self.in_channels}, T, H, W), "
                f"got {tuple(x.shape)}"
            )
        if x.dim() == 4:
            return self._filter_frames(x, 1)
        steps = x.shape[2]
        # Frames in channels_last that were made a clip become frames again without a copy.
        y = self._filter_frames(x.transpose(1, 2).flatten(0, 1), steps)
        return y.unflatten(0, (-1, steps)).transpose(1, 2)

    def filters(self, frames: Tensor, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """The filters that are predicted for folded frames (B*T, C, H, W).

        Returns:
            by_channel: (B*T, C*K*K), normalised.
            by_pixel: (B*T, head*K*K, H', W'), normalised.
        """
        by_pixel = self.spatial_branch(frames)
        if self.size_rule == "floor" and self.stride > 1:
            height, width = (size // self.stride for size in frames.shape[2:])
            if min(height, width) < 1:
                raise ValueError(
                    f"DDFPack: with size_rule='floor' an image must have at least stride={self.stride} rows "
                    f"and columns, got {tuple(frames.shape[2:])}; use size_rule='ceil'"
                )
            by_pixel = by_pixel[:, :, :height, :width]
        pool, *predict = self.channel_branch
        means = pool(frames)
        if self.clip_filter:
            means = means.unflatten(0, (-1, num_steps)).mean(dim=1)
        for module in predict:
            means = module(means)
        if self.clip_filter:
            means = means.repeat_interleave(num_steps, dim=0)
        return means, by_pixel

    def _filter_frames(self, frames: Tensor, num_steps: int) -> Tensor:
        window = (self.kernel_size, self.dilation, self.stride, self.kernel_combine)
        return _filter(frames, *self.filters(frames, num_steps), self.head, window, self.backend)

    def fresh_names(self) -> set[str]:
        """None: an image network of this family has weights for all of it."""
        return set()

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of an image network's layer are its own."""
        return dict(state)

    def explain(self, x: Tensor) -> Maps:
        """The energy of what each tap of the filters adds, per pixel, mean over channels and frames."""
        steps = x.shape[2]
        frames = x.transpose(1, 2).flatten(0, 1)
        by_channel, by_pixel = self.filters(frames, steps)
        window = (self.kernel_size, self.dilation, self.stride, self.kernel_combine)
        energies = []
        for k in range(self.kernel_size**2):
            # Filters with one tap that is not zero.
            tap = by_channel.new_zeros(self.kernel_size**2).index_fill(0, torch.tensor(k, device=x.device), 1)
            one_by_channel = by_channel * tap.repeat(self.in_channels)
            one_by_pixel = by_pixel * tap.to(by_pixel.dtype).repeat(self.head).view(-1, 1, 1)
            part = _filter(frames, one_by_channel, one_by_pixel, self.head, window, self.backend)
            energies.append(part.to(accumulation_dtype(x)).square().mean(dim=1))
        values = torch.stack(energies, dim=1).unflatten(0, (-1, steps)).mean(dim=1)
        places = offsets(self.kernel_size, self.dilation)
        labels = tuple(f"{dh},{dw}" for dh, dw in places)
        sides = (self.kernel_size, self.kernel_size)
        kernels = Kernels(
            by_pixel.unflatten(1, (self.head, *sides)).unflatten(0, (-1, steps)),
            by_channel.unflatten(1, (self.in_channels, *sides)).unflatten(0, (-1, steps)),
        )
        subject = "what the dynamic filters added (row, column)"
        return Maps("taps", subject, values, labels, kernels=kernels)

    def watched(self) -> dict[str, Tensor]:
        """The learnt scales of the channels' filters."""
        norm = self.channel_branch[-1]
        assert isinstance(norm, FilterNorm)
        assert norm.std is not None
        return {"std": norm.std}


class DDFUpPack(nn.Module):
    """Enlarges an image by an integer factor u; each of the u*u pixels that come of one has its own filters.

    Differences from the released code, which raises in every call: the operator gets its own arguments; the
    padding of the depth-wise convolution follows its own size; ``joint_channels`` is the width of the
    guidance; and the guidance may have the size of the result.

    Args:
        in_channels: Channels C, of the input and of the result.
        kernel_size: Side K of the filters, odd.
        scale_factor: u.
        dilation: Distance of neighbouring taps.
        head: As in :class:`DDFPack`.
        se_ratio: As in :class:`DDFPack`.
        nonlinearity: As in :class:`DDFPack`.
        dw_kernel_size: Side of the depth-wise convolution ahead of the prediction of the pixels' filters,
            odd;
            less than 3 is 3. Only without guidance.
        joint_channels: Channels of the guidance; less than 1: there is none, and the input guides itself.
        kernel_combine: ``mul`` or ``add``.
        backend: Backend of the operator.

    Shape:
        x (B, C, H, W), joint_x (B, joint_channels, H, W) or (B, joint_channels, u*H, u*W), where each pixel
        of the result has its own guidance -> (B, C, u*H, u*W).

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "linear",
        dw_kernel_size: int = 3,
        joint_channels: int = -1,
        kernel_combine: Combine = "mul",
        *,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        middle = _check_widths("DDFUpPack", in_channels, head, se_ratio)
        check_positive("DDFUpPack", scale_factor=scale_factor)
        check_window("DDFUpPack", kernel_size, dilation)
        check_window("DDFUpPack", dw_kernel_size, 1)
        check_choice("DDFUpPack", ("mul", "add"), kernel_combine=kernel_combine)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.dilation = dilation
        self.head = head
        self.joint_channels = joint_channels
        self.kernel_combine: Combine = kernel_combine
        self.backend: BackendName = backend

        def predict(width: int) -> nn.Sequential:
            norm = FilterNorm(head, kernel_size, "spatial", nonlinearity)
            return nn.Sequential(nn.Conv2d(width, head * kernel_size**2, 1), norm)

        def spatial_branch() -> nn.Sequential:
            if joint_channels >= 1:
                return predict(joint_channels)
            side = max(dw_kernel_size, 3)
            depth_wise = nn.Conv2d(in_channels, in_channels, side, padding=side // 2, groups=in_channels)
            return nn.Sequential(depth_wise, predict(in_channels))

        count = scale_factor**2
        self.spatial_branch = nn.ModuleList(spatial_branch() for _ in range(count))
        self.channel_branch = nn.ModuleList(
            _channel_branch(in_channels, middle, kernel_size, nonlinearity) for _ in range(count)
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, kernel_size={self.kernel_size}, scale_factor={self.scale_factor}, "
            f"dilation={self.dilation}, head={self.head}, joint_channels={self.joint_channels}, "
            f"kernel_combine={self.kernel_combine!r}, backend={self.backend!r}"
        )

    def forward(self, x: Tensor, joint_x: Tensor | None = None) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"DDFUpPack takes x (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        factor = self.scale_factor
        window = (self.kernel_size, self.dilation, 1, self.kernel_combine)
        guides = self._guides(x, joint_x)
        parts = []
        branches = zip(self.channel_branch, self.spatial_branch, guides, strict=True)
        for channel_branch, spatial_branch, guide in branches:
            filters = channel_branch(x), spatial_branch(guide)
            parts.append(_filter(x, *filters, self.head, window, self.backend))
        return nn.functional.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), factor)

    def _guides(self, x: Tensor, joint_x: Tensor | None) -> list[Tensor]:
        """What the pixels' filters are predicted from, for each of the u*u positions."""
        factor = self.scale_factor
        width = max(self.joint_channels, 0) or self.in_channels
        if joint_x is None:
            if width != self.in_channels:
                raise ValueError(f"DDFUpPack was built for a guidance of {width} channels: pass joint_x")
            return [x] * factor**2
        small = (x.shape[0], width, *x.shape[2:])
        large = (x.shape[0], width, *(factor * size for size in x.shape[2:]))
        if tuple(joint_x.shape) == small:
            return [joint_x] * factor**2
        if tuple(joint_x.shape) == large:
            return [joint_x[:, :, i::factor, j::factor] for i in range(factor) for j in range(factor)]
        raise ValueError(
            f"DDFUpPack: joint_x must be {small} or {large} for x {tuple(x.shape)}, got "
            f"{tuple(joint_x.shape)}; joint_channels is its width"
        )


@dataclass(frozen=True)
class DDFOptions(Options):
    """What networks may choose of their dynamic filters; see :class:`DDFPack`."""

    combine: Combine = option("mul", one_of("mul", "add"))
    kernel_size: int = option(3, positive_integer)
    heads: int = option(1, positive_integer)
    se_ratio: float = option(0.2, positive_number)
    clip_filter: bool = option(False, one_of(False, True))
    backend: BackendName = option("auto", one_of("auto", "reference", "torch", "cupy"))


def _build(options: DDFOptions, place: Place) -> DDFPack | None:
    """In the place of every spatial convolution that keeps its width."""
    replaced = place.convolution
    if place.slot != "convolution" or replaced is None or replaced.in_channels != replaced.out_channels:
        return None
    layer = DDFPack(
        place.channels,
        options.kernel_size,
        replaced.stride[0],
        replaced.dilation[0],
        options.heads,
        options.se_ratio,
        kernel_combine=options.combine,
        clip_filter=options.clip_filter,
        backend=options.backend,
    )
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            # As the released networks draw all their convolutions; alone, a layer has torch's own start.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layer


DDF = register_family(Family("ddf", DDFOptions, _build))
