"""The operator suite on a GPU, for every backend that is live there. Run with ``pytest -m gpu``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from operator_samples import SAMPLES, Sample, run
from torch import Tensor
from torch.nn import functional as F

from dtf.models import DTFBlock, create_model
from dtf.ops import frame_wise_aggregation, temporal_aggregation, temporal_correlation
from dtf.ops.dispatch import OPERATORS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dtf"
BACKENDS = [
    "torch",
    pytest.param(
        "cupy",
        marks=pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed"),
    ),
]
# As in test_cuda_kernels.py; the torch backend rounds in the same places.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = [
    (2, 16, 3, 9, 7, 3, 1),
    (1, 40, 1, 5, 6, 3, 2),
    (2, 5, 2, 6, 5, 5, 1),
    (1, 136, 2, 11, 37, 3, 1),
    (2, 64, 4, 56, 56, 3, 1),
    (1, 1024, 4, 7, 7, 3, 1),
]
LAYOUTS = ["contiguous", "folded", "channels_last"]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    # New memory is filled with NaN, so that an element no thread writes is seen.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(before)
    torch.backends.cudnn.allow_tf32 = True


def draw(*shape: int, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0, device: str = "cuda"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return arrange(x.to(device, dtype), layout)


def arrange(x: Tensor, layout: str) -> Tensor:
    if layout == "folded":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x


def assert_close(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    scale = exact.abs().max().clamp(min=1e-3)
    error = ((ours.double() - exact.double()).abs().max() / scale).item()
    assert error <= tolerance, f"relative error {error:.1e}"  # NaN fails too


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, backend: str, device: str = "cuda"
) -> None:
    *sizes, kernel_size, dilation = shape
    for op in SAMPLES:
        tensors = [value.to(device) for value in op.tensors(tuple(sizes), kernel_size, dtype)]
        tensors[0] = arrange(tensors[0], layout)
        ours = run(op, tensors, (kernel_size, dilation), backend)
        exact = run(op, [value.double() for value in tensors], (kernel_size, dilation), "reference")
        for mine, theirs in zip(ours, exact, strict=True):
            assert_close(mine, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(
    backend: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
) -> None:
    compare(shape, dtype, layout, backend)


@pytest.mark.parametrize("op", SAMPLES, ids=lambda op: op.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, op: Sample) -> None:
    tensors = [v.cuda().requires_grad_() for v in op.tensors((1, 3, 3, 3, 4), 3)]
    assert torch.autograd.gradcheck(lambda *args: op(*args, 3, 1, backend=backend), tensors)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_golden_numbers(backend: str) -> None:
    files = sorted(GOLDEN.glob("op_*.npz"))
    if not files:
        pytest.skip("tests/golden/dtf holds no operator fixtures")
    for path in files:
        with np.load(path) as data:
            stored = {name: torch.from_numpy(data[name]) for name in data if data[name].dtype.kind == "f"}
            arguments = {name: int(data[name]) for name in ("kernel_size", "dilation") if name in data}
        x = stored["x"].cuda()
        if "correlation" in path.name:
            inputs, operator, grads = [x], temporal_correlation, ["grad_x"]
            y, grad_y = stored["y"], stored["grad_y"]
        else:  # frames as a batch
            attention = stored["attention"].flatten(1, 3).unsqueeze(2).cuda()
            inputs, operator = [x.unsqueeze(2), attention], temporal_aggregation
            grads = ["grad_x", "grad_attention"]
            y, grad_y = stored["y"].unsqueeze(2), stored["grad_y"].unsqueeze(2)
            if "kernel_size" not in arguments:
                arguments["kernel_size"] = round(attention.shape[1] ** 0.5)
        leaves = [value.requires_grad_() for value in inputs]
        out = operator(*leaves, **arguments, backend=backend)
        assert_close(out, y.cuda(), 1e-9)
        for name, ours in zip(grads, torch.autograd.grad(out, leaves, grad_y.cuda()), strict=True):
            assert_close(ours, stored[name].cuda().reshape(ours.shape), 1e-9)


@pytest.mark.parametrize("op", SAMPLES, ids=lambda op: op.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_opcheck(layout: str, op: Sample) -> None:
    x, *more = (value.cuda() for value in op.tensors((2, 8, 3, 5, 4), 3, torch.float32))
    tensors = [value.requires_grad_() for value in (arrange(x, layout), *more)]
    torch.library.opcheck(OPERATORS[op.operator].backends["cupy"].run, (*tensors, 3, 1, *op.more))


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_on_the_current_stream(backend: str) -> None:
    source = draw(4, 64, 4, 56, 56, dtype=torch.float32)
    exact = frame_wise_aggregation(source, backend=backend)[0]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The clip is ready on this stream alone, and late: another stream would read what was there before.
        torch.cuda._sleep(200_000_000)
        x = torch.zeros_like(source).copy_(source)
        ours = frame_wise_aggregation(x, backend=backend)[0]
    stream.synchronize()
    assert torch.equal(ours, exact)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_device_while_the_first_is_current(backend: str) -> None:
    with torch.cuda.device(0):
        compare(SHAPES[0], torch.float32, "channels_last", backend, "cuda:1")
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    x = torch.empty(0, 8, 3, 5, 4, device="cuda", requires_grad=True)
    enriched, correlation = frame_wise_aggregation(x, backend=backend)
    assert enriched.shape == x.shape
    assert correlation.shape == (0, 9, 3, 5, 4)
    assert torch.autograd.grad(enriched.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("op", SAMPLES, ids=lambda op: op.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_bit_equal_from_run_to_run(backend: str, op: Sample) -> None:
    x, *more = (value.cuda() for value in op.tensors((2, 64, 4, 28, 28), 3, torch.bfloat16))
    tensors = [arrange(x, "channels_last"), *more]
    runs = [run(op, tensors, (3, 1), backend) for _ in range(3)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    if OPERATORS["frame_wise_aggregation"].backends["cupy"].missing():
        pytest.skip("the cupy backend is not live")
    x = torch.zeros(33, 64, 4, 512, 512, device="cuda", dtype=torch.float16)  # 2.2e9 elements
    x = x.contiguous(memory_format=torch.channels_last_3d)
    x[-1].normal_()
    enriched, correlation = frame_wise_aggregation(x, backend="cupy")
    last = frame_wise_aggregation(x[-1:].clone(), backend="cupy")
    assert torch.equal(enriched[-1:], last[0])
    assert torch.equal(correlation[-1:], last[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_block_agrees_with_its_reference(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact_block = DTFBlock(32, 4, backend="reference").double().cuda()
    torch.nn.init.normal_(exact_block.alpha)
    block = DTFBlock(32, 4, backend=backend).cuda()
    block.load_state_dict(exact_block.state_dict())
    x = draw(4, 32, 4, 14, 14, dtype=dtype, layout="channels_last").requires_grad_()
    wide = x.detach().double().requires_grad_()
    grad = draw(*x.shape, dtype=dtype, seed=3)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y = block(x)
    exact = exact_block(wide)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert_close(y, exact, tolerance)
    ours, theirs = torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(exact, wide, grad.double())[0]
    assert_close(ours, theirs, tolerance)


def test_compiled_block_uses_the_kernels_without_a_break() -> None:
    torch.compiler.reset()
    block = DTFBlock(32, 4).cuda()
    torch.nn.init.normal_(block.alpha)
    x = draw(2, 32, 4, 14, 14, dtype=torch.float32, layout="channels_last").requires_grad_()
    eager = block(x)
    compiled = torch.compile(block, fullgraph=True)(x)
    assert_close(compiled, eager, 1e-4)
    torch.compiler.reset()


def test_mixed_precision_training_follows_float32() -> None:
    """50 steps of dtf_resnet50 on moving dots: losses within noise of float32's, no non-finite value."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randint(2, (32,), generator=generator)
    video = 0.3 * torch.randn(32, 3, 16, 64, 64, generator=generator)
    start = torch.randint(64, (32, 2), generator=generator)
    for n in range(32):
        for t in range(16):
            column = int(start[n, 1] + (3 * t if direction[n] else -3 * t)) % 64
            video[n, :, t, int(start[n, 0]), column] += 8
    video, direction = video.cuda(), direction.cuda()
    ends = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(1)
        model = create_model("dtf_resnet50", num_classes=2, dropout=0.0).cuda()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16, init_scale=1024)
        losses = []
        for step in range(50):
            batch = slice(step % 4 * 8, step % 4 * 8 + 8)
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(model(video[batch]).float(), direction[batch])
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None), step
            scaler.step(optimiser)
            scaler.update()
            losses.append(loss.item())
        ends[dtype] = sum(losses[-8:]) / 8
    assert all(np.isfinite(value) for value in ends.values())
    assert max(ends.values()) - min(ends.values()) < 0.25, ends
