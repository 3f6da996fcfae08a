"""All operators, every backend: formulas, golden numbers, gradients, layouts, dtypes, refusals.

Letters: B clips, C channels, T frames, H x W pixels, K window side.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_samples import SAMPLES, run
from torch import Tensor

import dtf.ops
from dtf.ops import (
    decoupled_dynamic_filter,
    frame_wise_aggregation,
    temporal_aggregation,
    temporal_correlation,
)
from dtf.ops.dispatch import OPERATORS

GOLDEN = Path(__file__).parents[1] / "golden"
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

OPS = [pytest.param(sample, id=sample.__name__) for sample in SAMPLES]
# (B, C, T, H, W), kernel_size, dilation: odd sizes, one frame, windows that reach over the frame, one pixel.
CASES = [
    ((2, 3, 4, 5, 7), 3, 1),
    ((1, 2, 1, 4, 3), 3, 1),
    ((2, 2, 5, 6, 4), 5, 1),
    ((1, 3, 3, 7, 5), 3, 2),
    ((1, 1, 2, 2, 1), 5, 2),
    ((3, 4, 2, 3, 4), 1, 1),
]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        error = (a.double().cpu() - b.double().cpu()).abs().max()
        assert error <= tolerance * b.abs().max().double().cpu(), f"result {index} is {error:.1e} away"


def test_every_operator_has_samples():
    assert {sample.operator for sample in SAMPLES} == set(dtf.ops.__all__)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "kernel_size", "dilation"), CASES)
def test_reference_computes_the_formulas(op, shape, kernel_size, dilation):
    tensors = op.tensors(shape, kernel_size)
    expected = op.by_loops(tensors, kernel_size, dilation)
    ours = op(*tensors, kernel_size, dilation, backend="reference")
    assert_close(list(ours), expected, 1e-12)


@pytest.mark.parametrize("place", FAST_PLACES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "kernel_size", "dilation"), CASES)
def test_outputs_and_gradients_equal_the_reference(op, shape, kernel_size, dilation, place):
    device, backend = place
    tensors = op.tensors(shape, kernel_size)
    expected = run(op, tensors, (kernel_size, dilation), "reference")
    ours = run(op, [value.to(device) for value in tensors], (kernel_size, dilation), backend)
    assert_close(ours, expected, 1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 6, 5, 7, 7))),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    dilation=st.integers(1, 3),
)
def test_any_size_equals_the_reference(shape, kernel_size, dilation):
    for op in SAMPLES:
        tensors = op.tensors(shape, kernel_size)
        expected = run(op, tensors, (kernel_size, dilation), "reference")
        assert_close(run(op, tensors, (kernel_size, dilation), "torch"), expected, 1e-12)


@pytest.mark.parametrize("op", OPS)
def test_pieces_of_work_join_without_seams(op, monkeypatch):
    tensors = op.tensors((2, 3, 5, 9, 6), 5)
    expected = run(op, tensors, (5, 2), "reference")
    # One row, some rows, one frame, several frames, one clip, both clips at a time.
    for piece in (1, 40, 200, 600, 900, 2000):
        monkeypatch.setattr("dtf.ops.common.window._PIECE", piece)
        assert_close(run(op, tensors, (5, 2), "torch"), expected, 1e-12)


def _golden(kind: str) -> list[object]:
    files = sorted((GOLDEN / "dtf").glob(f"op_{kind}_*.npz"))
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


def _stored(path: Path) -> tuple[dict[str, Tensor], dict]:
    with np.load(path) as data:
        meta = json.loads(str(data["meta"]))
        return {key: torch.from_numpy(data[key]) for key in data if key != "meta"}, meta


_FILTERS = sorted((GOLDEN / "ddf").glob("op_*.npz"))
_FILTER_INPUTS = ("x", "channel_filter", "spatial_filter")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in _FILTERS])
def test_golden_decoupled_dynamic_filter(path, place, dtype):
    device, backend = place
    stored, meta = _stored(path)
    tensors = [stored[name].to(device, dtype).requires_grad_() for name in _FILTER_INPUTS]
    arguments = {name: meta[name] for name in ("kernel_size", "dilation", "stride", "combine")}
    y = decoupled_dynamic_filter(*tensors, **arguments, backend=backend)
    grads = torch.autograd.grad(y, tensors, stored["grad_out"].to(y))
    expected = [stored["out"], *(stored[f"grad_{name}"] for name in _FILTER_INPUTS)]
    exact = dtype == torch.float64 and stored["out"].dtype == torch.float64
    assert_close([y.detach(), *grads], expected, 1e-9 if exact else 1e-5)


def test_all_golden_filters_are_there():
    assert len(_FILTERS) == 24


@pytest.mark.parametrize("place", PLACES)
def test_golden_filters_of_the_position_and_of_the_channel_alone(place):
    device, backend = place
    stored = {
        key: value.to(device) for key, value in _stored(GOLDEN / "ddf" / "special_cases.npz")[0].items()
    }
    x, by_channel, by_pixel = (stored[name] for name in ("x", "channel_filter", "spatial_filter"))
    for combine, constant in (("mul", x.new_ones(())), ("add", x.new_zeros(()))):
        window = (3, 1, 1, combine)
        ours = decoupled_dynamic_filter(
            x, constant.expand(by_channel.shape), by_pixel, *window, backend=backend
        )
        assert_close([ours], [stored[f"involution_like_{combine}"]], 1e-9)
        ours = decoupled_dynamic_filter(
            x, by_channel, constant.expand(by_pixel.shape), *window, backend=backend
        )
        assert_close([ours], [stored[f"dynamic_depthwise_{combine}"]], 1e-9)


@pytest.mark.parametrize(
    "place",
    [pytest.param(("cpu", "reference"), id="cpu-reference", marks=pytest.mark.slow), *PLACES[1:]],
)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op, place):
    device, backend = place
    inputs = [v.to(device).requires_grad_() for v in op.tensors((2, 2, 3, 3, 4), 3)]

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        return op(*args, 3, 1, backend=backend)

    # Along one random direction where single entries would take minutes.
    many = sum(value.numel() for value in inputs) > 1000
    assert torch.autograd.gradcheck(call, inputs, fast_mode=many)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=many)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    custom_op = OPERATORS[op.operator].backends["torch"].run
    x, *more = (v.requires_grad_() for v in op.tensors((2, 2, 3, 4, 3), 3))
    torch.library.opcheck(custom_op, (x, *more, 3, 1, *op.more))
    folded = layouts(x.detach())["channels last"].requires_grad_()
    torch.library.opcheck(custom_op, (folded, *more, 3, 1, *op.more))


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_the_backward_operators(op):
    tensors = op.tensors((2, 2, 3, 4, 3), 3)
    outputs = op(*tensors, 3, 1, backend="reference")
    # Gradients, inputs, and the outputs that are kept.
    arguments = (*outputs, *tensors, *outputs[1:], 3, 1, *op.more)
    torch.library.opcheck(getattr(torch.ops.dtf, f"{op.operator}_backward").default, arguments)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory."""
    wide = torch.full([2 * n for n in x.shape], float("nan"), dtype=x.dtype, device=x.device)
    wide[tuple(slice(1, None, 2) for _ in x.shape)] = x
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    backwards = tuple(range(x.dim()))[::-1]
    return {
        "channels last": x.contiguous(memory_format=formats[x.dim()]),
        "reversed": x.permute(backwards).contiguous().permute(backwards),
        "swin": x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": wide[tuple(slice(1, None, 2) for _ in x.shape)],
        "frames first": x.transpose(0, 2).contiguous().transpose(0, 2),
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_every_memory_layout_gives_the_same_answer(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((2, 4, 3, 5, 6), 3)]
    expected = run(op, tensors, (3, 1), backend)
    for name in layouts(tensors[0]):
        others = [layouts(value)[name] for value in tensors]
        assert all(torch.equal(a, b) for a, b in zip(others, tensors, strict=True)), name
        assert_close(run(op, others, (3, 1), backend), expected, 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_expanded_inputs_and_gradients(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((1, 2, 3, 4, 3), 3)]
    tensors = [v.expand(3, *v.shape[1:]) for v in tensors]
    expected = run(op, [v.contiguous() for v in tensors], (3, 1), backend)
    assert_close(run(op, tensors, (3, 1), backend), expected, 1e-13)
    leaf = tensors[0].contiguous().requires_grad_()
    op(leaf, *tensors[1:], 3, 1, backend=backend)[0].sum().backward()  # a gradient of stride 0
    twin = tensors[0].contiguous().requires_grad_()
    output = op(twin, *tensors[1:], 3, 1, backend=backend)[0]
    output.backward(torch.ones_like(output))
    assert_close([leaf.grad], [twin.grad], 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_a_clip_alone_equals_the_clip_in_a_batch(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((3, 4, 2, 5, 3), 3)]
    together = op(*tensors, 3, 1, backend=backend)
    for clip in range(3):
        alone = op(*(v[clip : clip + 1] for v in tensors), 3, 1, backend=backend)
        assert_close(list(alone), [o[clip : clip + 1] for o in together], 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((0, 2, 3, 4, 5), 3)]
    results = run(op, tensors, (3, 1), backend)
    assert all(result.shape[0] == 0 for result in results)


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
        tensors = [v.to(device) for v in op.tensors(shape, kernel_size)]
        for result in run(op, tensors, (kernel_size, dilation), backend):
            assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", FAST_PLACES)
@pytest.mark.parametrize("op", OPS)
def test_16_bit_error_is_at_most_twice_that_of_plain_torch(op, place, dtype):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((2, 32, 4, 8, 9), 3, dtype)]
    exact = run(op, [v.double() for v in tensors], (3, 1), "reference")
    plain = run(op, tensors, (3, 1), "reference")
    ours = run(op, tensors, (3, 1), backend)
    for result, other, truth in zip(ours, plain, exact, strict=True):
        assert result.dtype == dtype
        error, allowed = ((v.double() - truth).abs() for v in (result, other))
        assert error.max() <= 2 * allowed.max()
        assert error.mean() <= 2 * allowed.mean()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((1, 3, 3, 4, 5), 3, torch.float32)]
    expected = run(op, tensors, (3, 1), backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        ours = run(op, tensors, (3, 1), backend)
    assert all(result.dtype == torch.float32 for result in ours)
    assert_close(ours, expected, 0 if backend != "reference" else 1e-6)


@pytest.mark.parametrize("place", FAST_PLACES)
@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(op, place):
    device, backend = place
    tensors = [v.to(device) for v in op.tensors((2, 2, 3, 4, 5), 3, torch.float32)]

    def call(*arguments: object, backend: str) -> tuple[Tensor, ...]:
        return op(*arguments, backend=backend)

    torch.compiler.reset()
    # aot_eager traces and partitions like the default without compiling loops, which takes minutes here.
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for name in (backend, "auto"):
        assert_close(run(compiled, tensors, (3, 1), name), run(op, tensors, (3, 1), backend), 1e-6)


@pytest.mark.parametrize("op", OPS)
def test_no_shifted_copies_are_kept_for_the_gradient(op):
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tensors = [v.requires_grad_() for v in op.tensors((1, 8, 4, 6, 6), 3)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = op(*tensors, 3, 1, backend="torch")
    assert outputs[0].requires_grad
    # The inputs, and maps that are outputs.
    assert sum(kept.values()) <= sum(value.nbytes for value in (*tensors, *outputs[1:]))


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


CLIP = (1, 2, 3, 4, 5)


def _filter(**changed: object) -> Tensor:
    good = {"x": _x(1, 2, 4, 5), "channel_filter": _x(1, 2, 3, 3), "spatial_filter": _x(1, 9, 4, 5)}
    return decoupled_dynamic_filter(**{**good, **changed})


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
        (lambda: _filter(x=_x(1, 2, 3, 4, 5)), r"\(B, C, H, W\), got 5 dim.*fold the frames of a clip"),
        (lambda: _filter(x=_x(1, 2, 0, 5)), "only the batch of x may be empty"),
        (lambda: _filter(x=_x(1, 2, 4, 5, dtype=torch.int32)), "float64, float32.*int32"),
        (lambda: _filter(channel_filter=_x(1, 2, 9)), r"\(B, C, K, K\) = \(1, 2, 3, 3\).*got \(1, 2, 9\)"),
        (lambda: _filter(spatial_filter=_x(1, 9, 4, 4)), r"= \(1, 9, 4, 5\) for .*got \(1, 9, 4, 4\)"),
        (lambda: _filter(stride=2), r"= \(1, 9, 2, 2 or 3\) for .*stride 2, got \(1, 9, 4, 5\)"),
        (lambda: _filter(stride=0), "stride must be a positive integer, got 0"),
        (lambda: _filter(combine="sum"), "combine must be 'mul' or 'add', got 'sum'"),
        (lambda: _filter(channel_filter=_x(1, 2, 3, 3).half()), r"share dtype and device.*float16.*to\(x\)"),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
