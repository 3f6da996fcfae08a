"""All three operators, every backend: formulas, golden numbers, gradients, layouts, dtypes, refusals.

Letters: B clips, C channels, T frames, H x W pixels, K window side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtf.ops import frame_wise_aggregation, temporal_aggregation, temporal_correlation

GOLDEN = Path(__file__).parents[1] / "golden" / "dtf"
# Relative to the largest entry. float64: the stored numbers were summed in another order. float32: as
# float64, with rounding at 6e-8 per step.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def _on_gpu(backend: str) -> object:
    marks = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    return pytest.param(("cuda", backend), marks=marks, id=f"cuda-{backend}")


PLACES = [
    pytest.param(("cpu", "reference"), id="cpu-reference"),
    pytest.param(("cpu", "torch"), id="cpu-torch"),
    _on_gpu("reference"),
    _on_gpu("torch"),
    _on_gpu("cupy"),
]
FAST_PLACES = PLACES[1:2] + PLACES[3:]

Op = Callable[..., tuple[Tensor, ...]]


def correlation(x: Tensor, attention: Tensor, *window: int, backend: str) -> tuple[Tensor, ...]:
    return (temporal_correlation(x, *window, backend=backend),)


def aggregation(x: Tensor, attention: Tensor, *window: int, backend: str) -> tuple[Tensor, ...]:
    return (temporal_aggregation(x, attention, *window, backend=backend),)


def frame_wise(x: Tensor, attention: Tensor, *window: int, backend: str) -> tuple[Tensor, ...]:
    return frame_wise_aggregation(x, *window, backend=backend)


OPS = [pytest.param(op, id=op.__name__) for op in (correlation, aggregation, frame_wise)]
# (B, C, T, H, W), kernel_size, dilation: odd sizes, one frame, windows that reach over the frame, one pixel.
CASES = [
    ((2, 3, 4, 5, 7), 3, 1),
    ((1, 2, 1, 4, 3), 3, 1),
    ((2, 2, 5, 6, 4), 5, 1),
    ((1, 3, 3, 7, 5), 3, 2),
    ((1, 1, 2, 2, 1), 5, 2),
    ((3, 4, 2, 3, 4), 1, 1),
]


def make(
    shape: tuple[int, ...], kernel_size: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape) + kernel_size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    maps = torch.randn(shape[0], kernel_size**2, *shape[2:], generator=generator, dtype=torch.float64)
    return x.to(dtype), maps.to(dtype)


def run(op: Op, x: Tensor, attention: Tensor, window: tuple[int, int], backend: str) -> list[Tensor]:
    """Returns the outputs, then the gradients of a fixed weighting of all outputs."""
    x, attention = x.detach().requires_grad_(), attention.detach().requires_grad_()
    outputs = op(x, attention, *window, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    inputs = (x, attention) if op is aggregation else (x,)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, inputs, weights)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        error = (a.double().cpu() - b.double().cpu()).abs().max()
        assert error <= tolerance * b.abs().max().double().cpu(), f"result {index} is {error:.1e} away"


def by_loops(op: Op, x: Tensor, attention: Tensor, kernel_size: int, dilation: int) -> list[Tensor]:
    """The formulas, entry by entry."""
    x_np, maps = x.numpy(), attention.numpy()
    batch, channels, frames, height, width = x_np.shape
    half = (kernel_size - 1) // 2

    def window(h: int, w: int) -> Iterator[tuple[int, int, int]]:
        for k in range(kernel_size**2):
            row, column = h + (k // kernel_size - half) * dilation, w + (k % kernel_size - half) * dilation
            if 0 <= row < height and 0 <= column < width:
                yield k, row, column

    places = list(np.ndindex(batch, frames, height, width))
    corr = np.zeros((batch, kernel_size**2, frames, height, width))
    for b, t, h, w in places:
        for k, row, column in window(h, w):
            products = x_np[b, :, max(t - 1, 0), h, w] * x_np[b, :, t, row, column]
            corr[b, k, t, h, w] = products.sum() / channels
    if op is correlation:
        return [torch.from_numpy(corr)]
    if op is frame_wise:
        maps = np.exp(corr) / np.exp(corr).sum(axis=1, keepdims=True)
    agg = np.zeros_like(x_np)
    for b, t, h, w in places:
        for k, row, column in window(h, w):
            agg[b, :, t, h, w] += maps[b, k, t, h, w] * x_np[b, :, t, row, column]
    if op is aggregation:
        return [torch.from_numpy(agg)]
    enriched = x_np.copy()
    enriched[:, :, :-1] += agg[:, :, 1:]
    return [torch.from_numpy(enriched), torch.from_numpy(corr)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "kernel_size", "dilation"), CASES)
def test_reference_computes_the_formulas(op, shape, kernel_size, dilation):
    x, attention = make(shape, kernel_size)
    expected = by_loops(op, x, attention, kernel_size, dilation)
    ours = op(x, attention, kernel_size, dilation, backend="reference")
    assert_close(list(ours), expected, 1e-12)


@pytest.mark.parametrize("place", FAST_PLACES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "kernel_size", "dilation"), CASES)
def test_outputs_and_gradients_equal_the_reference(op, shape, kernel_size, dilation, place):
    device, backend = place
    x, attention = make(shape, kernel_size)
    expected = run(op, x, attention, (kernel_size, dilation), "reference")
    ours = run(op, x.to(device), attention.to(device), (kernel_size, dilation), backend)
    assert_close(ours, expected, 1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 6, 5, 7, 7))),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    dilation=st.integers(1, 3),
)
def test_any_size_equals_the_reference(shape, kernel_size, dilation):
    x, attention = make(shape, kernel_size)
    for op in (correlation, aggregation, frame_wise):
        expected = run(op, x, attention, (kernel_size, dilation), "reference")
        assert_close(run(op, x, attention, (kernel_size, dilation), "torch"), expected, 1e-12)


@pytest.mark.parametrize("op", OPS)
def test_pieces_of_work_join_without_seams(op, monkeypatch):
    x, attention = make((2, 3, 5, 9, 6), 5)
    expected = run(op, x, attention, (5, 2), "reference")
    # One row, some rows, one frame, several frames, one clip, both clips at a time.
    for piece in (1, 40, 200, 600, 900, 2000):
        monkeypatch.setattr("dtf.ops.common.window._PIECE", piece)
        assert_close(run(op, x, attention, (5, 2), "torch"), expected, 1e-12)


def _golden(kind: str) -> list[object]:
    files = sorted(GOLDEN.glob(f"op_{kind}_*.npz"))
    assert len(files) == 5
    return [pytest.param(path, id=path.stem) for path in files]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", _golden("correlation"))
def test_golden_correlation(path, place, dtype):
    device, backend = place
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(path).items()}
    x = stored["x"].to(device, dtype).requires_grad_()
    window = int(stored["kernel_size"]), int(stored["dilation"])
    y = temporal_correlation(x, *window, backend=backend)
    (grad,) = torch.autograd.grad(y, x, stored["grad_y"].to(y))
    assert_close([y.detach(), grad], [stored["y"], stored["grad_x"]], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", _golden("aggregation"))
def test_golden_aggregation(path, place, dtype):
    device, backend = place
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(path).items()}
    # Stored with frames as a batch; here each is a clip of one frame.
    x = stored["x"].unsqueeze(2).to(device, dtype).requires_grad_()
    attention = stored["attention"].flatten(1, 3).unsqueeze(2).to(device, dtype).requires_grad_()
    window = int(stored["kernel_size"]), int(stored["dilation"])
    y = temporal_aggregation(x, attention, *window, backend=backend)
    grads = torch.autograd.grad(y, (x, attention), stored["grad_y"].unsqueeze(2).to(y))
    ours = [y.detach(), *grads]
    expected = [stored["y"], stored["grad_x"], stored["grad_attention"]]
    assert_close(ours, [b.reshape(a.shape) for a, b in zip(ours, expected, strict=True)], TOLERANCE[dtype])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op, place):
    device, backend = place
    x, attention = (v.to(device).requires_grad_() for v in make((2, 2, 3, 3, 4), 3))
    inputs = (x, attention) if op is aggregation else (x,)

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        return op(args[0], args[-1], 3, 1, backend=backend)

    assert torch.autograd.gradcheck(call, inputs)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("name", ["temporal_correlation", "temporal_aggregation", "frame_wise_aggregation"])
def test_opcheck(name):
    x, attention = (v.requires_grad_() for v in make((2, 2, 3, 4, 3), 3))
    inputs = (x, attention) if name == "temporal_aggregation" else (x,)
    torch.library.opcheck(getattr(torch.ops.dtf, name).default, (*inputs, 3, 1))
    folded = x.detach().to(memory_format=torch.channels_last_3d).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.dtf, name).default, (folded, *inputs[1:], 3, 1))


@pytest.mark.parametrize("name", ["temporal_correlation", "temporal_aggregation", "frame_wise_aggregation"])
def test_opcheck_of_the_backward_operators(name):
    x, attention = make((2, 2, 3, 4, 3), 3)
    grads = {
        "temporal_correlation": (attention, x),
        "temporal_aggregation": (x, x, attention),
        "frame_wise_aggregation": (x, attention, x, attention),
    }
    torch.library.opcheck(getattr(torch.ops.dtf, f"{name}_backward").default, (*grads[name], 3, 1))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory."""
    wide = torch.full([2 * n for n in x.shape], float("nan"), dtype=x.dtype, device=x.device)
    wide[tuple(slice(1, None, 2) for _ in x.shape)] = x
    return {
        "channels_last_3d": x.contiguous(memory_format=torch.channels_last_3d),
        "reversed": x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        "swin": x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
        "strided": wide[tuple(slice(1, None, 2) for _ in x.shape)],
        "frames first": x.transpose(0, 2).contiguous().transpose(0, 2),
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_every_memory_layout_gives_the_same_answer(op, place):
    device, backend = place
    x, attention = (v.to(device) for v in make((2, 4, 3, 5, 6), 3))
    expected = run(op, x, attention, (3, 1), backend)
    for (name, other), maps in zip(layouts(x).items(), layouts(attention).values(), strict=True):
        assert torch.equal(other, x), name
        assert_close(run(op, other, maps, (3, 1), backend), expected, 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_expanded_inputs_and_gradients(op, place):
    device, backend = place
    x, attention = (v.to(device) for v in make((1, 2, 3, 4, 3), 3))
    x, attention = x.expand(3, -1, -1, -1, -1), attention.expand(3, -1, -1, -1, -1)
    expected = run(op, x.contiguous(), attention.contiguous(), (3, 1), backend)
    assert_close(run(op, x, attention, (3, 1), backend), expected, 1e-13)
    leaf = x.contiguous().requires_grad_()
    op(leaf, attention, 3, 1, backend=backend)[0].sum().backward()  # a gradient of stride 0
    twin = x.contiguous().requires_grad_()
    output = op(twin, attention, 3, 1, backend=backend)[0]
    output.backward(torch.ones_like(output))
    assert_close([leaf.grad], [twin.grad], 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_a_clip_alone_equals_the_clip_in_a_batch(op, place):
    device, backend = place
    x, attention = (v.to(device) for v in make((3, 4, 2, 5, 3), 3))
    together = op(x, attention, 3, 1, backend=backend)
    for clip in range(3):
        alone = op(x[clip : clip + 1], attention[clip : clip + 1], 3, 1, backend=backend)
        assert_close(list(alone), [o[clip : clip + 1] for o in together], 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op, place):
    device, backend = place
    x, attention = (v.to(device) for v in make((0, 2, 3, 4, 5), 3))
    results = run(op, x, attention, (3, 1), backend)
    assert results[-1].numel() == 0
    assert results[0].shape[0] == 0


@pytest.fixture
def poisoned_memory():
    """Fresh tensors are filled with NaN instead of whatever zeros the allocator returns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_every_entry_is_written(op, place, poisoned_memory):
    device, backend = place
    for shape, kernel_size, dilation in CASES:
        x, attention = (v.to(device) for v in make(shape, kernel_size))
        for result in run(op, x, attention, (kernel_size, dilation), backend):
            assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", FAST_PLACES)
@pytest.mark.parametrize("op", OPS)
def test_16_bit_error_is_at_most_twice_that_of_plain_torch(op, place, dtype):
    device, backend = place
    x, attention = (v.to(device) for v in make((2, 32, 4, 8, 9), 3, dtype))
    exact = run(op, x.double(), attention.double(), (3, 1), "reference")
    plain = run(op, x, attention, (3, 1), "reference")
    ours = run(op, x, attention, (3, 1), backend)
    for result, other, truth in zip(ours, plain, exact, strict=True):
        assert result.dtype == dtype
        error, allowed = ((v.double() - truth).abs() for v in (result, other))
        assert error.max() <= 2 * allowed.max()
        assert error.mean() <= 2 * allowed.mean()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing(op, place):
    device, backend = place
    x, attention = (v.to(device) for v in make((1, 3, 3, 4, 5), 3, torch.float32))
    expected = run(op, x, attention, (3, 1), backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        ours = run(op, x, attention, (3, 1), backend)
    assert all(result.dtype == torch.float32 for result in ours)
    assert_close(ours, expected, 0 if backend != "reference" else 1e-6)


@pytest.mark.parametrize("place", FAST_PLACES)
def test_compiles_as_one_graph(place):
    device, backend = place
    x, attention = (v.to(device) for v in make((2, 2, 3, 4, 5), 3, torch.float32))

    def everything(x: Tensor, attention: Tensor, *window: int, backend: str) -> tuple[Tensor, ...]:
        outputs = (
            op(x, attention, *window, backend=backend) for op in (correlation, aggregation, frame_wise)
        )
        return tuple(output for several in outputs for output in several)

    # aot_eager traces and partitions like the default without compiling loops, which takes minutes here.
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for name in (backend, "auto"):
        assert_close(
            run(functools.partial(compiled), x, attention, (3, 1), name),
            run(functools.partial(everything), x, attention, (3, 1), backend),
            1e-6,
        )


@pytest.mark.parametrize("op", OPS)
def test_no_shifted_copies_are_kept_for_the_gradient(op):
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, attention = (v.requires_grad_() for v in make((1, 8, 4, 6, 6), 3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = op(x, attention, 3, 1, backend="torch")
    assert outputs[0].requires_grad
    # The clip and one set of maps.
    assert sum(kept.values()) <= x.nbytes + attention.nbytes


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


CLIP = (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temporal_correlation(_x(2, 3, 4, 5)), r"\(B, C, T, H, W\).*4 dimensions"),
        (lambda: frame_wise_aggregation(_x(1, 2, 3, 0, 5)), "only the batch of x may be empty"),
        (lambda: temporal_correlation(_x(*CLIP, dtype=torch.int64)), "float64, float32.*int64"),
        (lambda: temporal_correlation(_x(*CLIP, dtype=torch.complex64)), "float64, float32.*complex64"),
        (lambda: temporal_correlation(_x(*CLIP), 4), "odd.*got 4.*try 3 or 5"),
        (lambda: frame_wise_aggregation(_x(*CLIP), 0), "positive integer, got 0"),
        (lambda: frame_wise_aggregation(_x(*CLIP), 3.0), "positive integer, got 3.0"),
        (lambda: temporal_correlation(_x(*CLIP), 3, 0), "dilation must be a positive integer, got 0"),
        (lambda: temporal_correlation(_x(*CLIP), backend="torhc"), "did you mean 'torch'"),
        (
            lambda: temporal_correlation(_x(*CLIP), backend="cupy"),
            "cannot run: takes tensors on cuda, got cpu",
        ),
        (
            lambda: temporal_aggregation(_x(*CLIP), _x(1, 8, 3, 4, 5)),
            r"must be \(B, K\*K, T, H, W\) = \(1, 9, 3, 4, 5\).*got \(1, 8, 3, 4, 5\)",
        ),
        (
            lambda: temporal_aggregation(_x(*CLIP), _x(1, 9, 3, 4, 5, dtype=torch.float64)),
            "share dtype and device.*float32 on cpu and.*float64 on cpu",
        ),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
