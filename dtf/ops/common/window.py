"""Sums over the K x K window around every pixel, from which the operators and their gradients are made.

Letters: B clips, C channels, T frames, H x W pixels, K window side, R = K*K window offsets (row-major).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Elements per piece of work on a CPU. Operands and products should stay in a core's cache, but each piece
# costs 2*K*K calls: measured on one core at the four stages of ResNet-50, 256 Ki to 1 Mi elements are within
# 5 %, 64 Ki take 1.5 times as long.
_PIECE = 256 * 1024

Range = tuple[slice, slice]
"""Rows and columns."""


def offsets(kernel_size: int, dilation: int) -> list[tuple[int, int]]:
    """Returns the K*K offsets (dh, dw) of a window, row-major, in pixels."""
    half = (kernel_size - 1) // 2
    steps = [(i - half) * dilation for i in range(kernel_size)]
    return [(dh, dw) for dh in steps for dw in steps]


def neighbours(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Returns, for (..., H, W), the values (K*K, ..., H, W) at each offset; zero outside the frame.

    The plain form for the references: one padded copy per offset.
    """
    pad = (kernel_size - 1) // 2 * dilation
    height, width = x.shape[-2:]
    padded = F.pad(x, (pad, pad, pad, pad))
    return torch.stack(
        [
            padded[..., pad + dh : pad + dh + height, pad + dw : pad + dw + width]
            for dh, dw in offsets(kernel_size, dilation)
        ]
    )


def shifted(x: Tensor, kernel_size: int, dilation: int) -> list[Tensor]:
    """K*K views (B, C, T, H, W) of one padded clip, one for each window offset; zero outside the frame.

    The plain form for exported graphs.
    """
    pad = (kernel_size - 1) // 2 * dilation
    padded = F.pad(x, (pad, pad, pad, pad))
    steps = range(0, kernel_size * dilation, dilation)
    rows = [padded.narrow(3, step, x.shape[3]) for step in steps]
    return [row.narrow(4, step, x.shape[4]) for row in rows for step in steps]


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 and float32 accumulate in themselves, float16 and bfloat16 in float32."""
    return x.dtype if x.dtype == torch.float64 else torch.float32


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) of any layout -> (B, T, H, W, C) contiguous, in the dtype that sums are taken in.

    A view where ``x`` is channels_last_3d (folded frames in channels_last are).
    """
    return x.permute(0, 2, 3, 4, 1).to(accumulation_dtype(x)).contiguous()


def to_clip(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, H, W, C) -> (B, C, T, H, W) in channels_last_3d memory."""
    return frames.to(dtype).permute(0, 4, 1, 2, 3)


def empty_clip(x: Tensor) -> Tensor:
    """An empty tensor of the shape and dtype of ``x`` with the strides that :func:`to_clip` gives."""
    batch, channels, frames, height, width = x.shape
    return x.new_empty(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


def pieces(frames: Tensor) -> Iterator[tuple[slice, slice, int, int]]:
    """Cuts (B, T, H, W, C) into (clips, frames, first row, last row + 1) that fit a core's cache."""
    batch, num_frames, height, width, channels = frames.shape
    if frames.device.type != "cpu":
        yield slice(None), slice(None), 0, height
        return
    row = width * channels
    num_rows = min(height, max(1, _PIECE // row))
    group = min(max(1, num_frames), max(1, _PIECE // (height * row)))
    num_clips = max(1, _PIECE // max(1, num_frames * height * row))
    for clip in range(0, batch, num_clips):
        for first in range(0, num_frames, group):
            for top in range(0, height, num_rows):
                bottom = min(top + num_rows, height)
                yield slice(clip, clip + num_clips), slice(first, first + group), top, bottom


def overlaps(
    top: int,
    bottom: int,
    width: int,
    size: tuple[int, int],
    kernel_size: int,
    dilation: int,
    stride: int = 1,
) -> Iterator[tuple[int, Range, Range]]:
    """Yields, per offset k, the (rows, columns) whose neighbour lies in the frame, and the neighbours'.

    Args:
        top: First row.
        bottom: Last row + 1.
        width: Columns.
        size: (H, W) of the frame with the neighbours.
        kernel_size: Window side.
        dilation: Distance of neighbouring window pixels.
        stride: Row p is the centre of a window at row p * stride of the frame; columns likewise.
    """

    def along(first: int, last: int, limit: int, step: int) -> tuple[slice, slice]:
        # first <= p < last with 0 <= p * stride + step < limit
        first, last = max(first, -(step // stride)), min(last, -((step - limit) // stride))
        start = first * stride + step
        return slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)

    for k, (dh, dw) in enumerate(offsets(kernel_size, dilation)):
        rows, near_rows = along(top, bottom, size[0], dh)
        columns, near_columns = along(0, width, size[1], dw)
        if rows.start < rows.stop and columns.start < columns.stop:
            yield k, (rows, columns), (near_rows, near_columns)


def window_dots(query: Tensor, values: Tensor, out: Tensor, kernel_size: int, dilation: int) -> None:
    """``out[k, p] = sum_c query[p, c] * values[p + offset(k), c]``; entries outside the frame are left alone.

    Args:
        query: (B, T, H, W, C).
        values: (B, T, H, W, C).
        out: (B, R, T, H, W), written.
        kernel_size: Window side.
        dilation: Distance of neighbouring window pixels.
    """
    size = query.shape[2], query.shape[3]
    for clips, frames, top, bottom in pieces(query):
        q, v, maps = query[clips, frames], values[clips, frames], out[clips, :, frames]
        for k, (h, w), (near_h, near_w) in overlaps(top, bottom, size[1], size, kernel_size, dilation):
            products = q[:, :, h, w] * v[:, :, near_h, near_w]
            torch.sum(products, dim=-1, out=maps[:, k, :, h, w])


def window_sum(maps: Tensor, values: Tensor, out: Tensor, kernel_size: int, dilation: int) -> None:
    """``out[p, c] += sum_k maps[k, p] * values[p + offset(k), c]``, zero outside the frame.

    Args:
        maps: (B, R, T, H, W).
        values: (B, T, H, W, C).
        out: (B, T, H, W, C), added to.
        kernel_size: Window side.
        dilation: Distance of neighbouring window pixels.
    """
    size = values.shape[2], values.shape[3]
    for clips, frames, top, bottom in pieces(values):
        m, v, o = maps[clips, :, frames].unsqueeze(-1), values[clips, frames], out[clips, frames]
        for k, (h, w), (near_h, near_w) in overlaps(top, bottom, size[1], size, kernel_size, dilation):
            o[:, :, h, w].addcmul_(m[:, k, :, h, w], v[:, :, near_h, near_w])


def window_spread(maps: Tensor, values: Tensor, out: Tensor, kernel_size: int, dilation: int) -> None:
    """``out[p + offset(k), c] += maps[k, p] * values[p, c]``: the transpose of :func:`window_sum`.

    Args:
        maps: (B, R, T, H, W).
        values: (B, T, H, W, C).
        out: (B, T, H, W, C), added to.
        kernel_size: Window side.
        dilation: Distance of neighbouring window pixels.
    """
    size = values.shape[2], values.shape[3]
    for clips, frames, top, bottom in pieces(values):
        m, v, o = maps[clips, :, frames].unsqueeze(-1), values[clips, frames], out[clips, frames]
        for k, (h, w), (near_h, near_w) in overlaps(top, bottom, size[1], size, kernel_size, dilation):
            o[:, :, near_h, near_w].addcmul_(m[:, k, :, h, w], v[:, :, h, w])
