"""The kernels as torch custom operators, with shape functions for compile and export, and gradients.

Letters: B clips, C channels, T frames, H x W pixels, K window side.

All clips of a launch share the strides of ``x``: contiguous, folded frames and channels last go in as
they are, as does every other layout without gaps; a gradient in another layout than ``x`` is copied
first. Maps may have any strides and come out in the layout of ``x``. Sums run in float32 (float64 for
float64) and are rounded once. Every output is written by one thread, so results are deterministic.
Gradients of gradients are left to the reference backend.
"""

# No postponed annotations here: torch reads them.
import functools
from typing import Any

import torch

from dtf.ops.cuda import runtime
from dtf.ops.cuda.source import VECTOR_BYTES, Variant, accumulator, choose

Tensor = torch.Tensor


def _same_layout(a: Tensor, b: Tensor) -> bool:
    # Where a size is 1 its stride is never used.
    return all(s == t for s, t, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size > 1)


def _dense(x: Tensor) -> Tensor:
    """Returns ``x``, or a contiguous copy where its memory has gaps or overlaps."""
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != step:
                return x.contiguous()
            step *= size
    return x


def _like(a: Tensor, x: Tensor) -> Tensor:
    """Returns ``a``, or a copy of it in the layout of ``x``."""
    return a if _same_layout(a, x) else torch.empty_like(x).copy_(a)


def _new_maps(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Returns uninitialised maps (B, rows, T, H, W), their dimensions ordered in memory as those of ``x``."""
    order = sorted(range(5), key=x.stride, reverse=True)
    sizes = (x.shape[0], rows, *x.shape[2:])
    return torch.empty_permuted(sizes, order, dtype=dtype, device=x.device)


@functools.lru_cache(maxsize=4096)
def _plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    map_strides: tuple[tuple[int, ...], ...],
    aligned: bool,
    kernel_size: int,
    dilation: int,
    backward: bool,
) -> tuple[Variant, int, tuple[int, ...]]:
    """Returns a launch's variant, number of blocks, and arguments behind the pointers and flags."""
    batch, _, frames, height, width = shape
    variant = choose(dtype, shape, strides, map_strides, aligned, kernel_size)
    # Beyond the frame every off-centre pixel is outside, however far.
    dilation = min(dilation, max(height, width))
    pixels = variant.pixels_backward if backward else variant.pixels
    wide, tiles = variant.tile(height, width, dilation, pixels)
    numbers = [*strides, *(stride for each in map_strides for stride in each), *shape, dilation, wide]
    return variant, batch * frames * tiles, tuple(numbers)


def _launch(
    kernel: str,
    clips: list[Tensor],
    maps: list[Tensor],
    pointers: list[Tensor | None],
    flags: list[int],
    kernel_size: int,
    dilation: int,
    backward: bool = False,
) -> None:
    x = clips[0]
    assert all(_same_layout(clip, x) for clip in clips), "clips of a launch share their strides"
    aligned = not any(clip.data_ptr() % VECTOR_BYTES for clip in clips)
    strides = tuple(x.stride())
    plan = _plan(
        x.dtype,
        tuple(x.shape),
        strides,
        tuple(tuple(map_.stride()) for map_ in maps),
        aligned,
        kernel_size,
        dilation,
        backward,
    )
    variant, blocks, numbers = plan
    arguments = [0 if pointer is None else pointer.data_ptr() for pointer in pointers]
    arguments += [*flags, *numbers]
    runtime.launch(kernel, variant, blocks, arguments, x.device)


@torch.library.custom_op(
    "dtf_cuda::temporal_correlation",
    mutates_args=(),
    schema="(Tensor x, int kernel_size, int dilation) -> Tensor",
)
def temporal_correlation(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W) -> (B, K*K, T, H, W); see :func:`dtf.ops.temporal_correlation`."""
    x = _dense(x)
    out = _new_maps(x, kernel_size**2, x.dtype)
    _launch("correlate", [x], [out], [x, x, out], [1], kernel_size, dilation)
    return out


@temporal_correlation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return _new_maps(_dense(x), kernel_size**2, x.dtype)


@torch.library.custom_op(
    "dtf_cuda::temporal_correlation_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, int kernel_size, int dilation) -> Tensor",
)
def temporal_correlation_backward(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Gradient of :func:`temporal_correlation` for ``x``."""
    x = _dense(x)
    out = torch.empty_like(x)
    _launch("correlate_backward", [x, out], [grad], [x, grad, out], [], kernel_size, dilation, backward=True)
    return out


@temporal_correlation_backward.register_fake
def _(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return torch.empty_like(_dense(x))


def _save_correlation(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x)


def _correlation_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return temporal_correlation_backward(grad, x, ctx.kernel_size, ctx.dilation), None, None


temporal_correlation.register_autograd(_correlation_gradient, setup_context=_save_correlation)


@torch.library.custom_op(
    "dtf_cuda::temporal_aggregation",
    mutates_args=(),
    schema="(Tensor x, Tensor attention, int kernel_size, int dilation) -> Tensor",
)
def temporal_aggregation(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, C, T, H, W), (B, K*K, T, H, W) -> (B, C, T, H, W); see :func:`dtf.ops.temporal_aggregation`."""
    x = _dense(x)
    out = torch.empty_like(x)
    _launch("aggregate", [x, out], [attention], [x, attention, out], [0], kernel_size, dilation)
    return out


@temporal_aggregation.register_fake
def _(x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> Tensor:
    return torch.empty_like(_dense(x))


@torch.library.custom_op(
    "dtf_cuda::temporal_aggregation_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor attention, int kernel_size, int dilation) -> (Tensor, Tensor)",
)
def temporal_aggregation_backward(
    grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`temporal_aggregation` for ``x`` and ``attention``."""
    x = _dense(x)
    grad = _like(grad, x)
    out, maps = torch.empty_like(x), _new_maps(x, kernel_size**2, x.dtype)
    _launch("aggregate", [grad, out], [attention], [grad, attention, out], [1], kernel_size, dilation)
    _launch("correlate", [grad, x], [maps], [grad, x, maps], [0], kernel_size, dilation)
    return out, maps


@temporal_aggregation_backward.register_fake
def _(grad: Tensor, x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    return torch.empty_like(x), _new_maps(x, kernel_size**2, x.dtype)


def _save_aggregation(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, attention, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x, attention)


def _aggregation_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, attention = ctx.saved_tensors
    grads = temporal_aggregation_backward(grad, x, attention, ctx.kernel_size, ctx.dilation)
    return grads[0], grads[1], None, None


temporal_aggregation.register_autograd(_aggregation_gradient, setup_context=_save_aggregation)


@torch.library.custom_op(
    "dtf_cuda::frame_wise_aggregation",
    mutates_args=(),
    schema="(Tensor x, int kernel_size, int dilation) -> (Tensor, Tensor)",
)
def frame_wise_aggregation(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """(B, C, T, H, W) -> (like x, (B, K*K, T, H, W)); see :func:`dtf.ops.frame_wise_aggregation`."""
    x = _dense(x)
    enriched, correlation = torch.empty_like(x), _new_maps(x, kernel_size**2, x.dtype)
    pointers: list[Tensor | None] = [x, enriched, correlation]
    _launch("enrich", [x, enriched], [correlation], pointers, [], kernel_size, dilation)
    return enriched, correlation


@frame_wise_aggregation.register_fake
def _(x: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    return torch.empty_like(x), _new_maps(x, kernel_size**2, x.dtype)


@torch.library.custom_op(
    "dtf_cuda::frame_wise_aggregation_backward",
    mutates_args=(),
    schema="(Tensor grad_enriched, Tensor? grad_correlation, Tensor x, Tensor correlation, int kernel_size, "
    "int dilation) -> Tensor",
)
def frame_wise_aggregation_backward(
    grad_enriched: Tensor,
    grad_correlation: Tensor | None,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """Gradient of :func:`frame_wise_aggregation` for ``x``; ``correlation`` is its second output."""
    x = _dense(x)
    grad = _like(grad_enriched, x)
    maps = _new_maps(x, 2 * kernel_size**2, accumulator(x.dtype))
    gradients = correlation if grad_correlation is None else grad_correlation  # strides of an absent tensor
    _launch(
        "enrich_backward_maps",
        [grad, x],
        [correlation, gradients, maps],
        [grad, x, correlation, grad_correlation, maps],
        [],
        kernel_size,
        dilation,
    )
    out = torch.empty_like(x)
    _launch(
        "enrich_backward",
        [grad, x, out],
        [maps],
        [grad, x, maps, out],
        [],
        kernel_size,
        dilation,
        backward=True,
    )
    return out


@frame_wise_aggregation_backward.register_fake
def _(
    grad_enriched: Tensor,
    grad_correlation: Tensor | None,
    x: Tensor,
    correlation: Tensor,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    return torch.empty_like(_dense(x))


def _save_enrichment(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(x, output[1])
    ctx.set_materialize_grads(False)


def _enrichment_gradient(
    ctx: Any, grad_enriched: Tensor | None, grad_correlation: Tensor | None
) -> tuple[Tensor | None, None, None]:
    x, correlation = ctx.saved_tensors
    if grad_enriched is None and grad_correlation is None:
        return None, None, None
    if grad_enriched is None:
        grad_enriched = torch.zeros_like(x)
    grad = frame_wise_aggregation_backward(
        grad_enriched, grad_correlation, x, correlation, ctx.kernel_size, ctx.dilation
    )
    return grad, None, None


frame_wise_aggregation.register_autograd(_enrichment_gradient, setup_context=_save_enrichment)
