"""The operators in torch's own operations alone, for exported graphs that run where this package is not.

`torch.export` keeps the operators of the ``torch`` backend as single nodes. ``run_decompositions`` with
:func:`decompositions` writes them out, after which ``torch.export.save`` and ``torch.onnx.export`` take the
graph:

    program = torch.export.export(model.eval(), (video,))
    program = program.run_decompositions(decompositions())

Unlike in the references nothing is stacked K*K times that is as large as the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dtf.ops.window import accumulation_dtype


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns the operators of the ``torch`` backend with their plain forms (forward only)."""
    library = torch.ops.dtf  # filled by importing this package
    return {
        library.temporal_correlation.default: temporal_correlation,
        library.temporal_aggregation.default: temporal_aggregation,
        library.frame_wise_aggregation.default: frame_wise_aggregation,
    }


def temporal_correlation(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    wide = x.to(accumulation_dtype(x))
    return _correlate(wide, _shifted(wide, kernel_size, dilation)).to(x.dtype)


def temporal_aggregation(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    return _aggregate(_shifted(wide, kernel_size, dilation), attention.to(wide.dtype)).to(x.dtype)


def frame_wise_aggregation(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    wide = x.to(accumulation_dtype(x))
    views = _shifted(wide, kernel_size, dilation)
    correlation = _correlate(wide, views)
    # Frame 0 is aggregated in vain; K*K views of the later frames would be copies in most runtimes.
    added = _aggregate(views, correlation.softmax(dim=1))[:, :, 1:]
    enriched = torch.cat((wide[:, :, :-1] + added, wide[:, :, -1:]), dim=2)
    return enriched.to(x.dtype), correlation.to(x.dtype)


def _shifted(x: Tensor, kernel_size: int, dilation: int) -> list[Tensor]:
    """K*K views (B, C, T, H, W) of the clip, one for each window offset; zero outside the frame."""
    pad = (kernel_size - 1) // 2 * dilation
    padded = F.pad(x, (pad, pad, pad, pad))
    steps = range(0, kernel_size * dilation, dilation)
    rows = [padded.narrow(3, step, x.shape[3]) for step in steps]
    return [row.narrow(4, step, x.shape[4]) for row in rows for step in steps]


def _correlate(x: Tensor, views: list[Tensor]) -> Tensor:
    former = torch.cat((x[:, :, :1], x[:, :, :-1]), dim=2)
    return torch.cat([(former * view).mean(dim=1, keepdim=True) for view in views], dim=1)


def _aggregate(views: list[Tensor], attention: Tensor) -> Tensor:
    maps = attention.split(1, dim=1)
    total = maps[0] * views[0]
    for attended, view in zip(maps[1:], views[1:], strict=True):
        total = total + attended * view
    return total
