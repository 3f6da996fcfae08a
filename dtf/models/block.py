"""The dynamic temporal filter block.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252).

Letters: B clips, C channels, T frames at the block, H x W pixels, K window side, R = K*K correlation maps,
F = T//2 + 1 temporal frequencies, G filter groups.
"""

from __future__ import annotations

import torch
from torch import nn

from dtf.ops import frame_wise_aggregation
from dtf.ops.checks import check_window
from dtf.ops.dispatch import BackendName


class DTFBlock(nn.Module):
    """Filters every pixel of a clip in the temporal frequency domain, with a filter predicted from the clip.

    The clip is enriched by frame-wise aggregation, its spectrum over time is multiplied by a complex filter
    that a 1x1 convolution predicts for each pixel, mixed over channels by a complex matrix, normalised, and
    added back.

    A fresh block is exactly the identity: ``alpha`` and ``bias`` start at zero, so at step 0 only those two
    get a gradient. The filter weights grow with C^2 * T^2, therefore a block belongs to one number of frames.

    Args:
        dim: Channels C.
        num_frames: Frames T at the block, at least 1.
        kernel_size: Window side K of the correlation in pixels, odd.
        filter_groups: G consecutive entries of the flattened (C, F, re/im) filter share one predicted value;
            divides C * F * 2.
        backend: Backend of the operators; ``reference`` also takes the spectrum by FFT in complex numbers.

    Shape:
        (B, C, T, H, W) -> (B, C, T, H, W), any memory layout, same dtype.

    Raises:
        ValueError: Sizes that do not fit together, here or in the input.
    """

    def __init__(
        self,
        dim: int,
        num_frames: int,
        kernel_size: int = 3,
        filter_groups: int = 16,
        *,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_frames", num_frames), ("filter_groups", filter_groups)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"DTFBlock: {name} must be a positive integer, got {value!r}")
        check_window("DTFBlock", kernel_size, 1)
        num_frequencies = num_frames // 2 + 1
        num_filters = dim * num_frequencies * 2
        if num_filters % filter_groups:
            allowed = [g for g in range(1, 65) if num_filters % g == 0]
            raise ValueError(
                f"DTFBlock: filter_groups must divide dim * (num_frames // 2 + 1) * 2 = {num_filters}, "
                f"got {filter_groups}; allowed up to 64: {allowed}"
            )
        self.dim = dim
        self.num_frames = num_frames
        self.kernel_size = kernel_size
        self.filter_groups = filter_groups
        self.backend: BackendName = backend
        # Input channel c * T + t; the R correlation maps follow the C features.
        self.filter_weight = nn.Parameter(
            torch.empty(num_filters // filter_groups, (dim + kernel_size**2) * num_frames)
        )
        self.mix_weight = nn.Parameter(torch.empty(dim, dim, 2))  # real and imaginary part of M
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.alpha = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights; the block becomes the identity."""
        nn.init.kaiming_normal_(self.filter_weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.mix_weight, std=0.02)
        nn.init.zeros_(self.alpha)
        nn.init.zeros_(self.bias)
        self.norm.reset_running_stats()

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_frames={self.num_frames}, kernel_size={self.kernel_size}, "
            f"filter_groups={self.filter_groups}, backend={self.backend!r}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 5 or x.shape[1] != self.dim or x.shape[2] != self.num_frames:
            raise ValueError(
                f"DTFBlock takes (B, {self.dim}, {self.num_frames}, H, W), got {tuple(x.shape)}. The "
                "number of frames is fixed when the block is built: it must be clip_length / temporal_stride"
            )
        enriched, correlation = frame_wise_aggregation(x, self.kernel_size, backend=self.backend)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.dtype if x.dtype == torch.float64 else torch.float32
            y = self._filter_fft(x.to(wide), enriched.to(wide), correlation.to(wide))
        return y.to(x.dtype)

    def _filter_fft(self, x: torch.Tensor, enriched: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x.shape
        frequencies = frames // 2 + 1
        spectrum = torch.fft.rfft(enriched, dim=2, norm="ortho")  # (B, C, F, H, W)
        features = torch.cat([enriched, correlation], dim=1).flatten(1, 2)  # (B, (C+R)*T, H, W)
        shared = torch.einsum("oi,bihw->bohw", self.filter_weight, features)
        predicted = shared.repeat_interleave(self.filter_groups, dim=1)
        predicted = predicted.view(batch, channels, frequencies, 2, height, width)
        modulated = spectrum * torch.complex(predicted[:, :, :, 0], predicted[:, :, :, 1])
        mixed = torch.einsum("oc,bcfhw->bofhw", torch.view_as_complex(self.mix_weight), modulated)
        parts = torch.view_as_real(mixed)  # (B, C, F, H, W, 2)
        normal = torch.view_as_complex(self.norm(parts.flatten(2)).view_as(parts).contiguous())
        alpha, bias = self.alpha.view(-1, 1, 1, 1), self.bias.view(-1, 1, 1, 1)
        return x + torch.fft.irfft(alpha * normal, n=frames, dim=2, norm="ortho") + bias


class FoldedDTFBlock(DTFBlock):
    """A :class:`DTFBlock` on frames folded into the batch: (B*T, C, H, W) -> same, any memory layout."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        # Frames in channels_last make this a channels_last_3d clip: both reshapes are views.
        clips = frames.unflatten(0, (-1, self.num_frames)).transpose(1, 2)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)
