"""Bilinear samples at deformed places of a window, from which the deformable operators are made.

Letters: B clips, C channels, T frames, H x W pixels, K window side, N = B*T*H*W pixels of all frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dtf.ops.common.window import accumulation_dtype


def check_offset(operator: str, x: Tensor, offset: Tensor, kernel_size: int) -> None:
    """Raises ``ValueError`` unless ``offset`` is (B, 2*K*K, T, H, W), of the dtype of ``x`` or float32."""
    expected = (x.shape[0], 2 * kernel_size**2, *x.shape[2:])
    if tuple(offset.shape) != expected:
        raise ValueError(
            f"{operator}: offset must be (B, 2*K*K, T, H, W) = {expected} for x {tuple(x.shape)} and "
            f"kernel_size {kernel_size}, got {tuple(offset.shape)}"
        )
    if offset.dtype not in (x.dtype, accumulation_dtype(x)) or offset.device != x.device:
        allowed = " or ".join(dict.fromkeys(map(str, (x.dtype, accumulation_dtype(x)))))
        raise ValueError(
            f"{operator}: offset must be {allowed} on {x.device} for x {x.dtype}, got {offset.dtype} on "
            f"{offset.device}; convert it, e.g. offset.to(x)"
        )


_FAR = 2.0**30


class Corners:
    """The four pixels around every sample and their shares in it; pixels outside the frame have none.

    Places are taken in float32 (float64 for float64). An offset is split into its floor and the rest before
    the pixel's coordinate is added, so nothing is lost of it, however large a frame is. At a whole coordinate
    its derivative is the right-sided one. A sample at -1 or less, or at H (W) or more, is zero and has no
    gradient.

    Args:
        offset: (B, 2*K*K, T, H, W): y and x of each tap, in pixels.
        kernel_size: Window side K.
        dilation: Distance of neighbouring taps.

    Attributes:
        index: (B, K*K, 4, T, H, W), the corner's row * W + column; 0 outside the frame.
        weight: The same shape, differentiable in ``offset``.
    """

    def __init__(self, offset: Tensor, kernel_size: int, dilation: int) -> None:
        height, width = offset.shape[-2:]
        taps = offset.to(accumulation_dtype(offset)).unflatten(1, (kernel_size**2, 2))
        rows, columns = _pixels(kernel_size, dilation, height, width, offset.device)
        y = _along(taps[:, :, 0], rows, height)
        x = _along(taps[:, :, 1], columns, width)
        self._corners = [(a, b, a[3] & b[3]) for a in y for b in x]
        index = [torch.where(there, a[0] * width + b[0], 0) for a, b, there in self._corners]
        weight = [torch.where(there, a[1] * b[1], 0) for a, b, there in self._corners]
        self.index, self.weight = torch.stack(index, dim=2), torch.stack(weight, dim=2)

    def along(self) -> tuple[Tensor, Tensor]:
        """(d weight / d y, d weight / d x) of each corner, of the shape of the weights."""
        along_y = [torch.where(there, a[2] * b[1], 0) for a, b, there in self._corners]
        along_x = [torch.where(there, a[1] * b[2], 0) for a, b, there in self._corners]
        return torch.stack(along_y, dim=2), torch.stack(along_x, dim=2)


def _pixels(
    kernel_size: int, dilation: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(K*K, 1, H, 1) and (K*K, 1, 1, W): rows and columns of the taps of each pixel, without offsets."""
    # No constant tensors: they would stand in the way of exported graphs.
    side = (torch.arange(kernel_size, device=device) - (kernel_size - 1) // 2) * dilation
    window = (kernel_size, kernel_size)
    down, right = (steps.expand(window).reshape(-1, 1, 1, 1) for steps in (side.unsqueeze(1), side))
    return torch.arange(height, device=device).unsqueeze(1) + down, torch.arange(width, device=device) + right


def _along(offset: Tensor, start: Tensor, size: int) -> list[tuple[Tensor, Tensor, int, Tensor]]:
    """Of the two neighbours of a coordinate: place, share, d share, whether it is in the frame."""
    # What is farther away is outside, and might not fit an integer.
    floor = offset.detach().clamp(-_FAR, _FAR).floor()
    share = offset - floor
    first = start + floor.long()
    inside = (first >= 0) | ((first == -1) & (share > 0))
    inside = inside & (first < size)
    second = first + 1
    return [
        (first, 1 - share, -1, inside & (first >= 0)),
        (second, share, 1, inside & (second < size)),
    ]


def sample(x: Tensor, corners: Corners, tap: int) -> Tensor:
    """The samples (B, C, T, H, W) of one tap, in the dtype of ``x``; differentiable any number of times."""
    flat, shape = x.flatten(3), x.shape
    total = None
    for index, weight in zip(corners.index[:, tap].unbind(1), corners.weight[:, tap].unbind(1), strict=True):
        places = index.flatten(2).unsqueeze(1).expand(flat.shape)
        value = flat.gather(3, places).reshape(shape) * weight.unsqueeze(1).to(x.dtype)
        total = value if total is None else total + value
    assert total is not None
    return total


def grid_samples(x: Tensor, offset: Tensor, kernel_size: int, dilation: int) -> Iterator[Tensor]:
    """The samples (B*T, C, H, W) of each tap by torch's sampler, for exported graphs, which run forward only.

    That is one operation a tap, which graphs of other makers have too. Places are normalised there and back,
    by which they move by a rounding: a sample does not notice, its derivative at whole coordinates would.
    """
    height, width = x.shape[-2:]
    taps = offset.to(accumulation_dtype(offset)).unflatten(1, (kernel_size**2, 2)).transpose(2, 3)
    rows, columns = _pixels(kernel_size, dilation, height, width, offset.device)
    places = []
    # (B, K*K, T, H, W); x stands ahead of y, and what lies farther outside is outside.
    for side, start, size in ((1, columns, width), (0, rows, height)):
        place = (start + taps[:, :, :, side]).clamp(-2, size + 1)
        places.append((2 * place + 1) / size - 1)
    frames = x.transpose(1, 2).flatten(0, 1)
    for grid in torch.stack(places, dim=5).to(x.dtype).unbind(1):
        yield F.grid_sample(frames, grid.flatten(0, 1), padding_mode="zeros", align_corners=False)


class Samples:
    """The samples of all frames of a clip as sums over rows (N, C): nothing is copied K*K times.

    Three primitives, each a kernel of torch's embedding bags: sums of weighted corners, dot products with
    each corner, and the transpose of the first. All are deterministic.

    Attributes:
        weight: (N, K*K, 4), as in :class:`Corners`.
    """

    def __init__(self, offset: Tensor, kernel_size: int, dilation: int) -> None:
        corners = Corners(offset, kernel_size, dilation)
        batch, _, num_frames, height, width = offset.shape
        self.num_rows = batch * num_frames * height * width
        frames = torch.arange(batch * num_frames, device=offset.device).view(batch, 1, 1, num_frames, 1, 1)
        index = corners.index + frames * (height * width)
        self._corners = corners
        self._index = _by_pixel(index if self.num_rows >= 2**31 else index.int())
        self.weight = _by_pixel(corners.weight)

    @cached_property
    def along(self) -> Tensor:
        """(N, K*K, 2, 4), d weight / d y and d weight / d x."""
        return torch.stack([_by_pixel(along) for along in self._corners.along()], dim=2)

    def sum(self, rows: Tensor, maps: Tensor, taps: slice = slice(None)) -> Tensor:
        """``sum_k maps[n, k] * sample_k(n)``: rows (N, C), maps (N, taps) -> (N, C)."""
        weight = self.weight[:, taps] * maps.unsqueeze(2)
        index = self._index[:, taps].flatten(1)
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight.flatten(1))

    def dots(self, query: Tensor, rows: Tensor, taps: slice = slice(None)) -> Tensor:
        """``sum_c query[n, c] * corner_kj(n)[c]``: (N, C), (N, C) -> (N, taps, 4); any number outside."""
        index = self._index[:, taps]
        per_row = index[0].numel()
        starts = torch.arange(0, index.numel(), per_row, device=index.device, dtype=index.dtype)
        bags = torch.arange(len(rows), device=index.device, dtype=index.dtype).repeat_interleave(per_row)
        flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            query.contiguous(), rows.contiguous(), index.flatten(), starts, bags, 0
        )
        return flat.view(index.shape)

    def spread(self, values: Tensor, maps: Tensor, taps: slice = slice(None)) -> Tensor:
        """The transpose of :meth:`sum`: (N, C) at the samples, maps (N, taps) -> (N, C) at the pixels."""
        weight = (self.weight[:, taps] * maps.unsqueeze(2)).flatten()
        index = self._index[:, taps]
        order = index.flatten().argsort(stable=True)
        targets = index.flatten()[order]
        rows = torch.arange(self.num_rows, device=index.device, dtype=index.dtype)
        starts = torch.searchsorted(targets, rows).to(index.dtype)
        sources = (order // index[0].numel()).to(index.dtype)
        return F.embedding_bag(sources, values, starts, mode="sum", per_sample_weights=weight[order])


def _by_pixel(values: Tensor) -> Tensor:
    """(B, K*K, 4, T, H, W) -> (N, K*K, 4)."""
    return values.permute(0, 3, 4, 5, 1, 2).flatten(0, 3)


def by_pixel(maps: Tensor) -> Tensor:
    """(B, rows, T, H, W) -> (N, rows), in the dtype that sums are taken in."""
    return maps.permute(0, 2, 3, 4, 1).to(accumulation_dtype(maps)).flatten(0, 3)


def to_maps(values: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, rows) -> (B, rows, T, H, W) contiguous, sizes of the clip ``like``."""
    batch, _, *size = like.shape
    return values.view(batch, *size, -1).movedim(-1, 1).to(dtype).contiguous()
