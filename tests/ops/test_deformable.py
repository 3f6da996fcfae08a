"""The deformable operators: golden numbers, offsets of zero, whole coordinates, weights, groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_files import stored
from torch import Tensor

from dtf.ops import (
    deformable_aggregation,
    deformable_correlation,
    temporal_aggregation,
    temporal_correlation,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "sifa"
BACKENDS = ["reference", "torch"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max(), f"{error:.1e} away"


def correlate(x: Tensor, offset: Tensor, weight: Tensor, *window: int, backend: str) -> Tensor:
    return deformable_correlation(x, offset, *window, weight=weight, backend=backend)


FILES = sorted(GOLDEN.glob("def*_*.npz"))


def test_all_golden_files_are_there():
    assert len(FILES) == 22


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path, backend, dtype):
    values, meta = stored(path)
    exact = dtype == torch.float64 == values["out"].dtype
    tolerance = 1e-9 if exact else 1e-4
    names = ("x", "offset", "weight")
    leaves = [values[name].to(dtype).requires_grad_() for name in names]
    window = (meta["kernel_size"], meta["dilation"], meta["groups"])
    run = correlate if meta["op"] == "DefCor" else deformable_aggregation
    out = run(*leaves, *window, backend=backend)
    assert_close(out.detach(), values["out"], tolerance)
    grads = torch.autograd.grad(out, leaves, values["grad_out"].to(dtype))
    for name, grad in zip(names, grads, strict=True):
        assert_close(grad, values[f"grad_{name}"], tolerance)
    if path.stem.endswith("constw"):
        # The stored 1 / C is one of float32.
        without = deformable_correlation(*leaves[:2], *window, backend=backend)
        assert_close(without.detach(), values["out"], max(tolerance, 6e-8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_of_zero_are_the_integer_operators(backend):
    x, attention = draw(2, 4, 3, 5, 6).requires_grad_(), draw(2, 9, 3, 5, 6, seed=1).requires_grad_()
    offset = torch.zeros(2, 18, 3, 5, 6, dtype=torch.float64)
    pairs = [
        (deformable_correlation(x, offset, 3, 2, backend=backend), temporal_correlation(x, 3, 2)),
        (
            deformable_aggregation(x, offset, attention, 3, 2, backend=backend),
            temporal_aggregation(x, attention, 3, 2),
        ),
    ]
    for (ours, theirs), leaves in zip(pairs, [(x,), (x, attention)], strict=True):
        assert_close(ours.detach(), theirs.detach(), 1e-14)
        grad = draw(*ours.shape, seed=2)
        expected = torch.autograd.grad(theirs, leaves, grad)
        for one, other in zip(torch.autograd.grad(ours, leaves, grad), expected, strict=True):
            assert_close(one, other, 1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_whole_coordinates_the_derivative_is_the_right_sided_one(backend):
    x = torch.tensor([1.0, 3.0, 9.0, 7.0], dtype=torch.float64).expand(1, 1, 1, 1, 4)
    offset = torch.zeros(1, 2, 1, 1, 4, dtype=torch.float64, requires_grad=True)
    ones = x.new_ones(1, 1, 1, 1, 4)
    out = deformable_aggregation(x, offset, ones, 1, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), offset)
    # To the right of the last pixel, and below the only row, there is zero.
    assert grad[0, 1].flatten().tolist() == [2, 6, -2, -7]
    assert grad[0, 0].flatten().tolist() == [-1, -3, -9, -7]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [-1.0, 4.0, -1e9, 1e30])
def test_from_one_pixel_outside_on_nothing_has_a_gradient(backend, place):
    x = draw(1, 2, 1, 4, 4).requires_grad_()
    attention = draw(1, 1, 1, 4, 4, seed=1).requires_grad_()
    here = torch.arange(4.0, dtype=torch.float64)
    for axis in (0, 1):
        offset = torch.zeros(1, 2, 1, 4, 4, dtype=torch.float64)
        offset[0, axis, 0] = place - (here[:, None] if axis == 0 else here)
        offset.requires_grad_()
        out = deformable_aggregation(x, offset, attention, 1, backend=backend)
        assert not out.any()
        for grad in torch.autograd.grad(out.sum(), (x, offset, attention)):
            assert not grad.any()


def test_a_tiny_negative_offset_is_not_lost_beside_a_large_coordinate():
    x = torch.zeros(1, 1, 1, 1, 3000)
    x[..., 2999] = 1
    offset = torch.zeros(1, 2, 1, 1, 3000)
    offset[0, 1] = -1e-6
    out = deformable_aggregation(x, offset, torch.ones(1, 1, 1, 1, 3000), 1)
    assert 0.9e-6 < 1 - out[0, 0, 0, 0, 2999].double() < 1.1e-6


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_with_weight_and_groups(backend):
    leaves = [draw(1, 4, 2, 3, 3), draw(1, 18, 2, 3, 3, seed=1), draw(4, 2, 3, 3, seed=2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    call = lambda *args: correlate(*args, 3, 1, 2, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)


def test_opcheck_with_weight_and_groups():
    leaves = [draw(1, 4, 2, 3, 3), draw(1, 18, 2, 3, 3, seed=1), draw(4, 2, 3, 3, seed=2)]
    x, offset, weight = (leaf.requires_grad_() for leaf in leaves)
    torch.library.opcheck(torch.ops.dtf.deformable_correlation.default, (x, offset, 3, 1, 2, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_16_bit_clips_take_offsets_in_float32(backend):
    x, attention = draw(1, 8, 2, 4, 5, dtype=torch.bfloat16), draw(1, 9, 2, 4, 5, dtype=torch.bfloat16)
    offset = draw(1, 18, 2, 4, 5, dtype=torch.float32).requires_grad_()
    for run, more in ((deformable_correlation, ()), (deformable_aggregation, (attention,))):
        out = run(x, offset, *more, backend=backend)
        exact = run(x.double(), offset.double(), *(value.double() for value in more))
        assert out.dtype == torch.bfloat16
        assert_close(out.detach(), exact.detach(), 2e-2)
        (grad,) = torch.autograd.grad(out.float().sum(), offset)
        assert grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (
            ((1, 4, 2, 3, 3), (1, 9, 2, 3, 3)),
            {},
            r"offset must be \(B, 2\*K\*K, T, H, W\) = \(1, 18, 2, 3, 3\)",
        ),
        (
            ((1, 4, 2, 3, 3), (1, 18, 2, 3, 3)),
            {"groups": 3},
            r"groups must divide C = 4, got 3; allowed: \[1, 2",
        ),
        (((1, 4, 2, 3, 3), (1, 18, 2, 3, 3)), {"groups": 0}, "groups must be a positive integer, got 0"),
        (
            ((1, 4, 2, 3, 3), (1, 18, 2, 3, 3), (4, 2, 3)),
            {},
            r"weight must be \(C, T, K, K\) = \(4, 2, 3, 3\)",
        ),
    ],
)
def test_wrong_arguments_get_a_clear_error(shapes, arguments, message):
    x, offset, *weight = (draw(*shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        deformable_correlation(x, offset, **arguments, weight=weight[0] if weight else None)


def test_offsets_and_attention_must_fit():
    x, offset = draw(1, 4, 2, 3, 3), draw(1, 18, 2, 3, 3)
    with pytest.raises(ValueError, match=r"attention must be .* = \(1, 18, 2, 3, 3\).*got \(1, 9, 2, 3, 3\)"):
        deformable_aggregation(x, offset, draw(1, 9, 2, 3, 3), groups=2)
    with pytest.raises(ValueError, match=r"offset must be torch.float64 on cpu.*got torch.float32"):
        deformable_correlation(x, offset.float())
