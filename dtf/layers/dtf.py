"""DTF: the dynamic temporal filter block, and the family's part in networks.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252).

Letters: B clips, C channels, T frames at the block, H x W pixels, K window side, R = K*K correlation maps,
F = T//2 + 1 temporal frequencies, G filter groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from dtf.layers.options import Options, one_of, option, positive_integer
from dtf.layers.temporal import Family, Maps, Place, TemporalLayer, register_family
from dtf.ops import frame_wise_aggregation
from dtf.ops.checks import check_positive, check_window
from dtf.ops.dispatch import BackendName


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _autocast_device(x: torch.Tensor) -> str:
    """The device type to ask about autocast, which knows no meta device (there FLOPs are counted)."""
    return "cpu" if x.is_meta else x.device.type


def real_dft(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the orthonormal DFT of T real values as a real T x T matrix, and its inverse, in float64.

    The *ends* are DC and, where T is even, Nyquist: their imaginary parts are zero and left out.

    Returns:
        analysis: (T, T); rows: real parts of all frequencies, imaginary parts of those between the ends.
        synthesis: (T, T); columns: real parts of the ends, real parts and imaginary parts between them.
    """
    ends = [0, frames // 2] if frames % 2 == 0 else [0]
    middle = list(range(1, (frames + 1) // 2))
    time = torch.arange(frames, dtype=torch.float64)
    angle = torch.arange(frames // 2 + 1)[:, None] * time * (2 * math.pi / frames)
    real, imaginary = angle.cos() / math.sqrt(frames), -angle.sin() / math.sqrt(frames)
    analysis = torch.cat((real, imaginary[middle]))
    # A frequency between the ends stands for itself and its mirror image.
    synthesis = torch.cat((real[ends], 2 * real[middle], 2 * imaginary[middle])).t().contiguous()
    return analysis, synthesis


class DTFBlock(TemporalLayer):
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

    family = "dtf"

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
        check_positive("DTFBlock", dim=dim, num_frames=num_frames, filter_groups=filter_groups)
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
        # The 1x1 convolution as one matrix per frame; the R correlation maps follow the C features.
        num_inputs = dim + kernel_size**2
        self.filter_weight = nn.Parameter(torch.empty(num_frames, num_filters // filter_groups, num_inputs))
        self.mix_weight = nn.Parameter(torch.empty(dim, dim, 2))  # real and imaginary part of M
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.alpha = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.analysis: torch.Tensor
        self.synthesis: torch.Tensor
        self._make_transforms()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights; the block becomes the identity."""
        # Kaiming normal, fan_out, of the 1x1 convolution.
        nn.init.normal_(self.filter_weight, std=(2 / self.filter_weight.shape[1]) ** 0.5)
        nn.init.normal_(self.mix_weight, std=0.02)
        nn.init.zeros_(self.alpha)
        nn.init.zeros_(self.bias)
        self.norm.reset_running_stats()

    def _make_transforms(self) -> None:
        analysis, synthesis = real_dft(self.num_frames)
        dtype = _wide(self.alpha.dtype)
        self.register_buffer("analysis", analysis.to(self.alpha.device, dtype), persistent=False)
        self.register_buffer("synthesis", synthesis.to(self.alpha.device, dtype), persistent=False)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # .to(), .double(), .bfloat16() would carry rounded matrices along: make them again.
        super()._apply(*args, **kwargs)
        self._make_transforms()
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_frames={self.num_frames}, kernel_size={self.kernel_size}, "
            f"filter_groups={self.filter_groups}, backend={self.backend!r}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        response = self.response(x)
        # The precision of every step is chosen, and the same on every device.
        with torch.autocast(_autocast_device(x), enabled=False):
            return (x + response).to(x.dtype)

    def response(self, x: torch.Tensor) -> torch.Tensor:
        """What the block adds to its input: (B, C, T, H, W) -> same shape, bfloat16, float32 or float64."""
        if x.dim() != 5 or x.shape[1] != self.dim or x.shape[2] != self.num_frames:
            raise ValueError(
                f"DTFBlock takes (B, {self.dim}, {self.num_frames}, H, W), got {tuple(x.shape)}. The "
                "number of frames is fixed when the block is built: it must be clip_length / temporal_stride"
            )
        enriched, correlation = frame_wise_aggregation(x, self.kernel_size, backend=self.backend)
        storage, product = self._precision(x)
        enriched, correlation = enriched.to(storage), correlation.to(storage)
        with torch.autocast(_autocast_device(x), enabled=False):
            if self.backend == "reference":
                return self._respond_by_fft(enriched, correlation)
            return self._respond(enriched, correlation, product)

    def _precision(self, x: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
        """Returns the dtypes (that spectra and filters are stored in, that the mix multiplies in).

        * float64, float32: their own.
        * bfloat16: bfloat16 for both; the predicted filter, the sum in every product and the batch statistics
          are float32.
        * float32 under autocast to bfloat16 (the residual stream of a transformer): float32, bfloat16.
        * bfloat16, T odd: float32, bfloat16. The entries of a rounded DFT come in pairs of opposite sign for
          T even alone; for T odd the mean of the frames would leak into every frequency.
        * float16: float32 for both, because the filtered spectrum is quadratic in the features and leaves
          the range of float16 at feature values around 50.
        * The reference: never less than float32; FFT and complex numbers have no 16-bit form.

        Decided by measured error: outputs and all gradients err at most twice as much as the plain formulas
        under autocast (tests/models/test_precision.py).
        """
        wide = _wide(x.dtype)
        if self.backend == "reference":
            return wide, wide
        if x.dtype == torch.bfloat16:
            return (torch.bfloat16 if self.num_frames % 2 == 0 else wide), torch.bfloat16
        device = _autocast_device(x)
        if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
            narrow = torch.get_autocast_dtype(device) == torch.bfloat16
            return wide, torch.bfloat16 if narrow else wide
        return wide, wide

    def _respond(
        self, enriched: torch.Tensor, correlation: torch.Tensor, product: torch.dtype
    ) -> torch.Tensor:
        """What the block adds to its input, in real arithmetic on channels_last frames.

        ``product`` is the dtype in which the mix multiplies; all else stays in the dtype of ``enriched``.

        A spectrum is T real planes (B, T, P, C), see :func:`real_dft`: at its ends (DC, and Nyquist where T
        is even) the imaginary part is zero before the filter and ignored by the inverse after it, so it is
        only made where the batch statistics count it.
        """
        batch, channels, frames, height, width = enriched.shape
        frequencies, ends, pixels = frames // 2 + 1, 2 - frames % 2, height * width
        middle = frequencies - ends
        e = enriched.permute(0, 2, 3, 4, 1).reshape(batch, frames, pixels, channels)
        maps = correlation.permute(0, 2, 3, 4, 1).reshape(batch, frames, pixels, self.kernel_size**2)

        # The 1x1 convolution over all frames, as one product per frame and a sum: no permuted copy of the
        # clip.
        dtype = enriched.dtype
        weight = self.filter_weight.transpose(1, 2).to(dtype)  # (T, C + R, O)
        by_frame = e @ weight[:, :channels] + maps @ weight[:, channels:]
        shared = by_frame.sum(dim=1, dtype=_wide(dtype))  # (B, P, O)
        spectrum = (self.analysis.to(dtype) @ e.flatten(2)).view(batch, frames, pixels, channels)
        real, imaginary = spectrum.split((frequencies, middle), dim=1)
        at_ends = slice(0, 1) if ends == 1 else slice(None, None, frequencies - 1)
        between = slice(1, 1 + middle)

        mix_real, mix_imaginary = self.mix_weight.unbind(dim=2)
        if self.filter_groups % 2 == 0:
            # Each predicted value serves pairs (re, im), so the filter is g * (1 + i) with a real g: scale
            # the spectrum by g and move 1 + i into the mix.
            gain = self._spread(shared, (channels, frequencies)).permute(0, 3, 1, 2).contiguous()
            real, imaginary = real * gain, imaginary * gain[:, between]
            end, centre = real[:, at_ends], torch.cat((real[:, between], imaginary), dim=3)
            mix_real, mix_imaginary = mix_real - mix_imaginary, mix_real + mix_imaginary
        else:
            gains = self._spread(shared, (channels, frequencies, 2)).permute(4, 0, 3, 1, 2)
            re, im = gains.contiguous().unbind()
            real_by_im, imaginary_by_im = real * im, imaginary * im[:, between]
            real, imaginary = real * re, imaginary * re[:, between]
            end = torch.cat((real[:, at_ends], real_by_im[:, at_ends]), dim=3)
            centre = torch.cat(
                (real[:, between] - imaginary_by_im, real_by_im[:, between] + imaginary), dim=3
            )
        # Rows: re, im of the filtered spectrum.
        to_real = torch.cat((mix_real, -mix_imaginary), dim=1).t().to(product)
        to_imaginary = torch.cat((mix_imaginary, mix_real), dim=1).t().to(product)
        inputs = end.shape[3]
        end, centre = end.to(product), centre.to(product)
        planes = [end @ to_real[:inputs], centre @ to_real, centre @ to_imaginary]
        if self.norm.training or self.norm.running_mean is None:
            planes.append(end @ to_imaginary[:inputs])
        mixed = torch.cat(planes, dim=1).to(dtype)
        normal = self.norm(mixed.view(-1, channels)).view_as(mixed)[:, :frames]
        response = (self.synthesis.to(dtype) @ normal.flatten(2)).view(batch, frames, height, width, channels)
        return torch.addcmul(self.bias, response, self.alpha).permute(0, 4, 1, 2, 3)

    def _spread(self, shared: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """(B, P, O) -> (B, P, *shape), each predicted value repeated in place."""
        batch, pixels, outputs = shared.shape
        repeats = math.prod(shape) // outputs
        return shared.unsqueeze(3).expand(-1, -1, -1, repeats).reshape(batch, pixels, *shape)

    def _respond_by_fft(self, enriched: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
        """The reference of :meth:`_respond`: the formulas of the paper, complex, by FFT."""
        batch, channels, frames, height, width = enriched.shape
        frequencies = frames // 2 + 1
        spectrum = torch.fft.rfft(enriched, dim=2, norm="ortho")  # (B, C, F, H, W)
        features = torch.cat([enriched, correlation], dim=1)  # (B, C + R, T, H, W)
        shared = torch.einsum("toi,bithw->bohw", self.filter_weight, features)
        predicted = shared.repeat_interleave(self.filter_groups, dim=1)
        predicted = predicted.view(batch, channels, frequencies, 2, height, width)
        filtered = spectrum * torch.complex(predicted[:, :, :, 0], predicted[:, :, :, 1])
        mixed = torch.einsum("oc,bcfhw->bofhw", torch.view_as_complex(self.mix_weight), filtered)
        parts = torch.view_as_real(mixed)  # (B, C, F, H, W, 2)
        normal = torch.view_as_complex(self.norm(parts.flatten(2)).view_as(parts).contiguous())
        alpha, bias = self.alpha.view(-1, 1, 1, 1), self.bias.view(-1, 1, 1, 1)
        return torch.fft.irfft(alpha * normal, n=frames, dim=2, norm="ortho") + bias

    def explain(self, x: torch.Tensor) -> Maps:
        """The energy that the block adds, per pixel and temporal frequency; f is f cycles per clip."""
        energy = response_energy(self, x)
        labels = ("mean over time", *(f"{f} per clip" for f in range(1, energy.shape[1])))
        return Maps("frequencies", "what the temporal filters added", energy, labels, per_clip=True)

    def watched(self) -> dict[str, torch.Tensor]:
        """alpha, which says how far the block has left the identity, and the predictor's weights."""
        return {"alpha": self.alpha, "weight": self.filter_weight}


def response_energy(block: DTFBlock, x: torch.Tensor) -> torch.Tensor:
    """The energy of a block's filtered spectrum, per temporal frequency and pixel.

    In evaluation mode a block adds ``d[t] + const[t]`` to its input. ``const`` is what it adds to an empty
    clip (its bias and the running mean of its norm): the same at every pixel of every clip, it says nothing
    about where a clip is filtered and is left out. ``d`` is the filtered spectrum, with input spectrum X,
    predicted filter g, mix M, and the scale of norm and alpha: ``d_o = irfft(alpha_o / sigma_o * sum_c
    M[o, c] g_c X_c)``. With ``D = rfft(d, norm="ortho")``

        energy[f] = w[f] / C * sum_c |D[c, f]|^2,   w = 1 at DC and (T even) at the highest frequency, else 2

    so that the sum over f is ``1/C * sum_c sum_t d[c, t]^2`` (Parseval): the energy that the clip's own
    content made the block add at this pixel. The square root is an amplitude in the units of the features.

    Why not |g| alone: G consecutive entries of the flattened (C, F, re/im) filter share one value, so with
    the usual G = 16 one value serves all F <= 8 frequencies of a channel, and |g| can hardly tell them
    apart. What a frequency gets is decided by filter and spectrum together.

    Args:
        block: a DTF block in evaluation mode.
        x: its input, (B, C, T, H, W), floating.

    Returns:
        (B, F, H, W), >= 0, float32 (float64 for float64). Frequency f is f cycles per clip.

    Raises:
        ValueError: the block is in training mode, where its norm depends on the batch.
    """
    if block.training:
        raise ValueError("the response is defined in evaluation mode: call .eval() first")
    wide = torch.promote_types(x.dtype, torch.float32)
    constant = block.response(x.new_zeros(1, block.dim, block.num_frames, 1, 1)).to(wide)
    spectrum = torch.fft.rfft(block.response(x).to(wide) - constant, dim=2, norm="ortho")
    energy = torch.view_as_real(spectrum).square().sum(dim=-1).mean(dim=1)  # (B, F, H, W)
    # A frequency between the ends stands for itself and its mirror image.
    energy[:, 1 : (block.num_frames + 1) // 2] *= 2
    return energy


@dataclass(frozen=True)
class DTFOptions(Options):
    """What networks may choose of their DTF blocks; see :class:`DTFBlock`."""

    kernel_size: int = option(3, positive_integer)
    filter_groups: int = option(16, positive_integer)
    backend: BackendName = option("auto", one_of("auto", "reference", "torch", "cupy"))


def _build(options: DTFOptions, place: Place) -> DTFBlock | None:
    """A block behind every spatial convolution of a ResNet, and in every unshifted block of a Swin."""
    if place.slot == "after_convolution" or (place.slot == "after_attention" and not place.shifted):
        return DTFBlock(
            place.channels,
            place.num_steps,
            options.kernel_size,
            options.filter_groups,
            backend=options.backend,
        )
    return None


DTF = register_family(Family("dtf", DTFOptions, _build))
