"""Every registered operator with what tests call it with: a new operator has its entries here, and its tests.

Letters: B clips or images, C channels, T frames, H x W pixels, K window side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dtf import ops

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """An operator with some arguments, called as ``sample(*tensors, kernel_size, dilation, backend=...)``.

    Attributes:
        operator: Its registered name.
        shapes: From (B, C, T, H, W) and K to the shapes of the tensors that it takes.
        formula: From the tensors as arrays, K and the dilation to its results, entry by entry.
        more: Arguments behind kernel_size and dilation.
    """

    operator: str
    shapes: Callable[[Shape, int], list[Shape]]
    formula: Callable[..., list[np.ndarray]]
    more: tuple[object, ...] = ()

    @property
    def __name__(self) -> str:
        return "-".join([self.operator, *map(str, self.more)])

    def __call__(self, *arguments: object, backend: str) -> tuple[Tensor, ...]:
        outputs = getattr(ops, self.operator)(*arguments, *self.more, backend=backend)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def tensors(self, shape: Shape, kernel_size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Random numbers of variance 1, always the same ones."""
        generator = torch.Generator().manual_seed(sum(shape) + kernel_size)
        return [
            torch.randn(each, generator=generator, dtype=torch.float64).to(dtype)
            for each in self.shapes(shape, kernel_size)
        ]

    def by_loops(self, tensors: list[Tensor], kernel_size: int, dilation: int) -> list[Tensor]:
        """The formula's results."""
        arrays = self.formula(*(value.numpy() for value in tensors), kernel_size, dilation, *self.more)
        return [torch.from_numpy(array) for array in arrays]


def run(sample: Sample, tensors: list[Tensor], window: tuple[int, int], backend: str) -> list[Tensor]:
    """Returns the outputs, then the gradients of a fixed weighting of all outputs."""
    leaves = [value.detach().requires_grad_() for value in tensors]
    outputs = sample(*leaves, *window, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, weights)]


def window(
    h: int, w: int, size: tuple[int, ...], kernel_size: int, dilation: int
) -> Iterator[tuple[int, int, int]]:
    """(tap, row, column) of the neighbours of a pixel that lie in the frame."""
    half = (kernel_size - 1) // 2
    for k in range(kernel_size**2):
        row, column = h + (k // kernel_size - half) * dilation, w + (k % kernel_size - half) * dilation
        if 0 <= row < size[0] and 0 <= column < size[1]:
            yield k, row, column


def _correlate(x: np.ndarray, kernel_size: int, dilation: int) -> list[np.ndarray]:
    batch, channels, frames, *size = x.shape
    corr = np.zeros((batch, kernel_size**2, frames, *size))
    for b, t, h, w in np.ndindex(batch, frames, *size):
        for k, row, column in window(h, w, tuple(size), kernel_size, dilation):
            products = x[b, :, max(t - 1, 0), h, w] * x[b, :, t, row, column]
            corr[b, k, t, h, w] = products.sum() / channels
    return [corr]


def _aggregate(x: np.ndarray, attention: np.ndarray, kernel_size: int, dilation: int) -> list[np.ndarray]:
    batch, _, frames, *size = x.shape
    agg = np.zeros_like(x)
    for b, t, h, w in np.ndindex(batch, frames, *size):
        for k, row, column in window(h, w, tuple(size), kernel_size, dilation):
            agg[b, :, t, h, w] += attention[b, k, t, h, w] * x[b, :, t, row, column]
    return [agg]


def _enrich(x: np.ndarray, kernel_size: int, dilation: int) -> list[np.ndarray]:
    [corr] = _correlate(x, kernel_size, dilation)
    attention = np.exp(corr) / np.exp(corr).sum(axis=1, keepdims=True)
    [agg] = _aggregate(x, attention, kernel_size, dilation)
    enriched = x.copy()
    enriched[:, :, :-1] += agg[:, :, 1:]
    return [enriched, corr]


def _filter(
    x: np.ndarray, a: np.ndarray, b: np.ndarray, kernel_size: int, dilation: int, stride: int, combine: str
) -> list[np.ndarray]:
    out = np.zeros((*x.shape[:2], *b.shape[2:]))
    for n, p, q in np.ndindex(len(x), *b.shape[2:]):
        for k, row, column in window(p * stride, q * stride, x.shape[2:], kernel_size, dilation):
            by_channel, by_pixel = a[n, :, k // kernel_size, k % kernel_size], b[n, k, p, q]
            weight = by_channel * by_pixel if combine == "mul" else by_channel + by_pixel
            out[n, :, p, q] += weight * x[n, :, row, column]
    return [out]


def _deformed(
    x: np.ndarray, offset: np.ndarray, kernel_size: int, dilation: int
) -> Iterator[tuple[tuple[int, ...], int, np.ndarray]]:
    """(b, t, h, w), tap and its sample of all channels: every pixel weighted with hats of width 1."""
    batch, _, frames, height, width = x.shape
    half = (kernel_size - 1) // 2
    for b, t, h, w in np.ndindex(batch, frames, height, width):
        for k in range(kernel_size**2):
            y = h + (k // kernel_size - half) * dilation + offset[b, 2 * k, t, h, w]
            z = w + (k % kernel_size - half) * dilation + offset[b, 2 * k + 1, t, h, w]
            rows = np.maximum(0, 1 - abs(y - np.arange(height)))
            columns = np.maximum(0, 1 - abs(z - np.arange(width)))
            yield (b, t, h, w), k, x[b, :, t] @ columns @ rows


def _correlate_deformed(
    x: np.ndarray, offset: np.ndarray, kernel_size: int, dilation: int, groups: int
) -> list[np.ndarray]:
    corr = np.zeros((len(x), groups, kernel_size**2, *x.shape[2:]))
    for (b, t, h, w), k, sample in _deformed(x, offset, kernel_size, dilation):
        products = x[b, :, max(t - 1, 0), h, w] * sample / x.shape[1]
        corr[b, :, k, t, h, w] = products.reshape(groups, -1).sum(axis=1)
    return [corr.reshape(len(x), -1, *x.shape[2:])]


def _aggregate_deformed(
    x: np.ndarray, offset: np.ndarray, attention: np.ndarray, kernel_size: int, dilation: int, groups: int
) -> list[np.ndarray]:
    batch, channels, *size = x.shape
    agg = np.zeros((batch, groups, channels, *size))
    maps = attention.reshape(batch, groups, -1, *size)
    for (b, t, h, w), k, sample in _deformed(x, offset, kernel_size, dilation):
        agg[b, :, :, t, h, w] += maps[b, :, k, t, h, w, None] * sample
    return [agg.reshape(batch, -1, *size)]


def _clip(shape: Shape, kernel_size: int) -> list[Shape]:
    return [shape]


def _clip_and_maps(shape: Shape, kernel_size: int) -> list[Shape]:
    return [shape, (shape[0], kernel_size**2, *shape[2:])]


def _clip_and_offsets(shape: Shape, kernel_size: int) -> list[Shape]:
    return [shape, (shape[0], 2 * kernel_size**2, *shape[2:])]


def _clip_offsets_and_maps(groups: int) -> Callable[[Shape, int], list[Shape]]:
    def shapes(shape: Shape, kernel_size: int) -> list[Shape]:
        maps = (shape[0], groups * kernel_size**2, *shape[2:])
        return [*_clip_and_offsets(shape, kernel_size), maps]

    return shapes


def _image_and_filters(stride: int) -> Callable[[Shape, int], list[Shape]]:
    def shapes(shape: Shape, kernel_size: int) -> list[Shape]:
        batch, channels, _, height, width = shape
        # Rounded up along one axis and down along the other.
        size = -(-height // stride), max(1, width // stride)
        channel_filter = (batch, channels, kernel_size, kernel_size)
        return [(batch, channels, height, width), channel_filter, (batch, kernel_size**2, *size)]

    return shapes


SAMPLES = [
    Sample("temporal_correlation", _clip, _correlate),
    Sample("temporal_aggregation", _clip_and_maps, _aggregate),
    Sample("frame_wise_aggregation", _clip, _enrich),
    Sample("deformable_correlation", _clip_and_offsets, _correlate_deformed, (1,)),
    Sample("deformable_aggregation", _clip_offsets_and_maps(2), _aggregate_deformed, (2,)),
    Sample("decoupled_dynamic_filter", _image_and_filters(1), _filter, (1, "mul")),
    Sample("decoupled_dynamic_filter", _image_and_filters(1), _filter, (1, "add")),
    Sample("decoupled_dynamic_filter", _image_and_filters(2), _filter, (2, "mul")),
    Sample("decoupled_dynamic_filter", _image_and_filters(3), _filter, (3, "add")),
]
