"""The CUDA kernels themselves, run on the CPU behind ``cuda_shim.h``, against the reference in float64.

Everything between the public operators and the launch is what a GPU would use: choice of the variant,
layouts, custom operators, gradients. Only the launch is replaced.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import compiler, launch
from operator_samples import SAMPLES, run
from torch import Tensor

from dtf.ops import deformable_correlation, frame_wise_aggregation
from dtf.ops.common import launch as window_launch
from dtf.ops.common import runtime, source
from dtf.ops.decoupled_dynamic_filter import cupy_backend as filter_launch
from dtf.ops.dispatch import OPERATORS

pytestmark = [
    pytest.mark.slow,  # compiles kernels
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler to run the CUDA kernels on the CPU"),
]

# Relative to the largest entry. Sums run in float32 for all but float64, so 16-bit types see the rounding of
# inputs to later steps and of the output: 2**-11 and 2**-8 each, and the saved correlation's.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
DTYPES = list(TOLERANCE)
LAYOUTS = ["contiguous", "folded", "channels_last"]
# B, C, T, H, W, K, dilation
SHAPES = {
    "odd sizes": (2, 16, 3, 9, 7, 3, 1),
    "one frame, dilation": (1, 40, 1, 5, 6, 3, 2),
    "window 5, ragged channels": (2, 5, 2, 6, 5, 5, 1),
    "several tiles and chunks": (1, 136, 2, 11, 37, 3, 1),
    "dilation beyond the frame": (1, 8, 2, 3, 4, 3, 9),
    "one pixel, one channel": (3, 1, 2, 1, 1, 3, 1),
}


@pytest.fixture(autouse=True)
def _kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runtime, "launch", launch)
    for operator in OPERATORS.values():
        slot = operator.backends["cupy"]
        live = dataclasses.replace(slot, devices=None, missing=list)
        monkeypatch.setitem(operator.backends, "cupy", live)
    # New memory is filled with NaN, so that an element no thread writes is seen.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def arrange(x: Tensor, layout: str) -> Tensor:
    if layout == "folded":  # frames folded into the batch (of an image: rows first)
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def draw(*shape: int, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return arrange(x.to(dtype), layout)


def assert_close(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    scale = exact.abs().max().clamp(min=1e-3)
    error = ((ours.double() - exact).abs().max() / scale).item()
    assert error <= TOLERANCE[dtype], f"relative error {error:.1e}"  # NaN fails too


def both(operator, inputs: list[Tensor], window: tuple[int, int] = (3, 1), seed: int = 1):
    """Returns outputs and input gradients of the kernels, and of the reference in float64."""
    results = []
    gradients = None
    for backend, wide in (("cupy", False), ("reference", True)):
        leaves = [x.detach().double() if wide else x.detach() for x in inputs]
        leaves = [x.requires_grad_() for x in leaves]
        outputs = operator(*leaves, *window, backend=backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if gradients is None:
            gradients = [draw(*out.shape, dtype=out.dtype, seed=seed + i) for i, out in enumerate(outputs)]
        grads = torch.autograd.grad(outputs, leaves, [g.to(outputs[0].dtype) for g in gradients])
        results.append([t.detach() for t in (*outputs, *grads)])
    return results


OPS = [pytest.param(sample, id=sample.__name__) for sample in SAMPLES]
# Compiling takes the time: what has a twin with other arguments of its own takes every other dtype.
_TWINS = Counter(sample.operator for sample in SAMPLES)
IN_DTYPES = [
    pytest.param(sample, dtype, id=f"{sample.__name__}-{dtype}")
    for i, sample in enumerate(SAMPLES)
    for j, dtype in enumerate(DTYPES)
    if _TWINS[sample.operator] == 1 or (i + j) % 2
]


@pytest.mark.parametrize(("op", "dtype"), IN_DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_agree_with_the_reference(
    dtype: torch.dtype, layout: str, shape: tuple[int, ...], op
) -> None:
    *sizes, kernel_size, dilation = shape
    tensors = op.tensors(tuple(sizes), kernel_size, dtype)
    tensors[0] = arrange(tensors[0], layout)
    for mine, theirs in zip(*both(op, tensors, (kernel_size, dilation)), strict=True):
        assert_close(mine, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_deformable_correlation_with_a_weight_and_groups(dtype: torch.dtype, groups: int) -> None:
    tensors = [
        draw(2, 16, 3, 5, 4, dtype=dtype, layout="channels_last"),
        draw(2, 18, 3, 5, 4, dtype=dtype, seed=1),
        draw(16, 3, 3, 3, dtype=dtype, seed=2),
    ]

    def call(x: Tensor, offset: Tensor, weight: Tensor, *window: int, backend: str) -> Tensor:
        return deformable_correlation(x, offset, *window, groups, weight=weight, backend=backend)

    for ours, exact in zip(*both(call, tensors), strict=True):
        assert_close(ours, exact, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept_and_not_copied(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(2, 16, 3, 6, 5, dtype=torch.float32, layout=layout).requires_grad_()
    seen: list[int] = []

    def spy(kernels, kernel, variant, blocks, arguments, device) -> None:
        seen.extend(arguments)
        launch(kernels, kernel, variant, blocks, arguments, device)

    monkeypatch.setattr(runtime, "launch", spy)
    enriched, correlation = frame_wise_aggregation(x, backend="cupy")
    assert enriched.stride() == x.stride()
    order = sorted(range(5), key=x.stride, reverse=True)
    assert sorted(range(5), key=correlation.stride, reverse=True) == order
    assert x.data_ptr() in seen
    seen.clear()
    gradient = torch.randn_like(enriched)
    (grad,) = torch.autograd.grad(enriched, x, gradient)
    assert grad.stride() == x.stride()
    assert {x.data_ptr(), gradient.data_ptr()} <= set(seen)


def test_memory_with_gaps_or_overlaps_gives_the_same_numbers() -> None:
    base = draw(2, 8, 3, 12, 10, dtype=torch.float64)
    for x in (base[:, ::2, :, ::2], base[:, :, :1].expand(-1, -1, 4, -1, -1), base.permute(0, 3, 2, 1, 4)):
        for ours, exact in zip(*both(frame_wise_aggregation, [x]), strict=True):
            assert_close(ours, exact, torch.float64)


def test_gradient_in_another_layout_than_the_clip() -> None:
    x = draw(2, 8, 3, 5, 6, dtype=torch.float64, layout="channels_last").requires_grad_()
    gradient = draw(2, 8, 3, 5, 6, dtype=torch.float64, layout="contiguous", seed=3)
    results = [
        torch.autograd.grad(frame_wise_aggregation(x, backend=backend)[0], x, gradient)[0]
        for backend in ("cupy", "reference")
    ]
    assert_close(results[0], results[1], torch.float64)


@pytest.mark.parametrize("used", [0, 1], ids=["enriched", "correlation"])
def test_gradient_of_one_output_alone(used: int) -> None:
    x = draw(1, 4, 3, 5, 4, dtype=torch.float64).requires_grad_()
    results = [
        torch.autograd.grad(frame_wise_aggregation(x, backend=backend)[used].square().sum(), x)[0]
        for backend in ("cupy", "reference")
    ]
    assert_close(results[0], results[1], torch.float64)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(layout: str, op) -> None:
    tensors = [arrange(value, layout) for value in op.tensors((0, 8, 3, 5, 4), 3, torch.float32)]
    for ours, exact in zip(*both(op, tensors), strict=True):
        assert ours.shape == exact.shape


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_wide_offsets(layout: str, op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "NARROW_OFFSETS", 0)
    plans = (window_launch._plan, filter_launch._plan)
    for plan in plans:
        plan.cache_clear()
    x, *more = op.tensors((1, 16, 2, 5, 6), 3, torch.float32)
    for ours, exact in zip(*both(op, [arrange(x, layout), *more]), strict=True):
        assert_close(ours, exact, torch.float32)
    for plan in plans:
        plan.cache_clear()


@pytest.mark.parametrize("op", OPS)
def test_a_clip_that_is_not_aligned_gives_the_same_numbers(op) -> None:
    x, *more = op.tensors((1, 16, 2, 5, 6), 3, torch.float32)
    x = arrange(x, "channels_last")
    moved = torch.empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert moved.data_ptr() % 16
    for ours, exact in zip(*both(op, [moved, *more]), strict=True):
        assert_close(ours, exact, torch.float32)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(layout: str, op) -> None:
    tensors = [arrange(value, layout).requires_grad_() for value in op.tensors((1, 3, 3, 3, 4), 3)]
    assert torch.autograd.gradcheck(lambda *args: op(*args, 3, 1, backend="cupy"), tensors, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_runs_are_bit_equal_whatever_the_grid(layout: str, op, monkeypatch: pytest.MonkeyPatch) -> None:
    x, *more = op.tensors((2, 24, 3, 9, 8), 3, torch.float32)
    tensors = [arrange(x, layout), *more]
    whole = run(op, tensors, (3, 1), "cupy")
    monkeypatch.setattr(
        runtime, "launch", lambda f, k, v, blocks, a, d: launch(f, k, v, min(blocks, 1), a, d)
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, run(op, tensors, (3, 1), "cupy"), strict=True))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_custom_operators_pass_opcheck(layout: str, op) -> None:
    x, *more = op.tensors((2, 8, 3, 5, 4), 3, torch.float32)
    tensors = [value.requires_grad_() for value in (arrange(x, layout), *more)]
    torch.library.opcheck(OPERATORS[op.operator].backends["cupy"].run, (*tensors, 3, 1, *op.more))


def test_compiled_graph_is_whole_and_holds_one_node() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    x = draw(1, 8, 3, 5, 4, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: frame_wise_aggregation(x, backend="cupy"), backend=keep, fullgraph=True
    )
    for ours, eager in zip(compiled(x), frame_wise_aggregation(x, backend="cupy"), strict=True):
        assert torch.equal(ours, eager)
    (graph,) = graphs
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("frame_wise_aggregation" in call for call in calls) == 1
    torch.compiler.reset()


def test_autocast_leaves_the_operator_in_the_dtype_of_its_input() -> None:
    x = draw(1, 8, 2, 5, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert frame_wise_aggregation(x, backend="cupy")[0].dtype == torch.float32
