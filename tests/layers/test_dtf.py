"""The DTF block: golden numbers, identity at the start, sizes, layouts, precision, compilers.

Letters: B clips, C channels, T frames, H x W pixels, G filter groups.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtf.layers import DTFBlock
from dtf.layers.dtf import real_dft
from dtf.models import convert_original_state_dict

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "dtf").glob("dtf_block_*.npz"))
# Relative to the largest entry; float32 sums and normalises in float32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
BACKENDS = ["auto", "reference"]


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max(), f"{name} is {error:.1e} away"


def awake(block: DTFBlock, seed: int = 0) -> DTFBlock:
    """Gives alpha and bias values, so that the block does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (block.alpha, block.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        block.norm.running_mean.copy_(torch.randn(block.dim, generator=generator) * 0.1)
        block.norm.running_var.copy_(torch.rand(block.dim, generator=generator) * 0.01 + 0.001)
    return block


def clip(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def as_original(name: str, gradient: Tensor, shape: torch.Size) -> Tensor:
    """A gradient of ours in the shape of the original's parameter."""
    if name == "filter_g.weight":  # (T, O, C + R) -> (O, (C + R) * T, 1, 1)
        gradient = gradient.permute(1, 2, 0)
    return gradient.reshape(shape)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_numbers(path, backend, dtype):
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(path).items()}
    original = {key.removeprefix("param_"): v for key, v in stored.items() if key.startswith("param_")}
    x = stored["x"].to(dtype).requires_grad_()
    block = DTFBlock(x.shape[1], int(stored["clip_len"]), 3, int(stored["factor_G"]), backend=backend)
    block.to(dtype)
    state, report = convert_original_state_dict(original, block)
    assert not report.dead
    block.load_state_dict(state)
    tolerance, grad_y = TOLERANCE[dtype], stored["grad_y"].to(dtype)

    y = block.eval()(x)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    assert_close(y.detach(), stored["y_eval"], tolerance, "y_eval")
    assert_close(grad_x, stored["grad_x_eval"], tolerance, "grad_x_eval")

    parameters = {
        "filter_g.weight": block.filter_weight,
        "linear1.complex_weight": block.mix_weight,
        "alpha1": block.alpha,
        "bias": block.bias,
    }
    y = block.train()(x)
    grad_x, *gradients = torch.autograd.grad(y, (x, *parameters.values()), grad_y)
    assert_close(y.detach(), stored["y_train"], tolerance, "y_train")
    assert_close(grad_x, stored["grad_x_train"], tolerance, "grad_x_train")
    for name, gradient in zip(parameters, gradients, strict=True):
        expected = stored[f"grad_{name}"]
        assert_close(as_original(name, gradient, expected.shape), expected, tolerance, name)
    assert_close(block.norm.running_mean, stored["running_mean_after"], tolerance, "running_mean")
    assert_close(block.norm.running_var, stored["running_var_after"], tolerance, "running_var")
    assert block.norm.num_batches_tracked == original["norm1.norm.num_batches_tracked"] + 1


def test_there_are_golden_blocks():
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 12, 32])
def test_real_dft_equals_the_fft(frames):
    analysis, synthesis = real_dft(frames)
    x = clip(3, frames)
    spectrum = torch.fft.rfft(x, norm="ortho")
    middle = slice(1, (frames + 1) // 2)
    assert_close(x @ analysis.t(), torch.cat((spectrum.real, spectrum.imag[:, middle]), 1), 1e-14)
    # Any spectrum, not only that of a real signal: the inverse ignores imaginary parts at the ends.
    other = torch.complex(clip(3, frames // 2 + 1), clip(3, frames // 2 + 1) + 1)
    ends = [0, frames // 2] if frames % 2 == 0 else [0]
    planes = torch.cat((other.real[:, ends], other.real[:, middle], other.imag[:, middle]), 1)
    assert_close(planes @ synthesis.t(), torch.fft.irfft(other, n=frames, norm="ortho"), 1e-14)


# T, K, G, C, H, W: even and odd T, even and odd G (two ways of grouping), odd and non-square frames.
SIZES = [
    (1, 3, 4, 8, 5, 3),
    (2, 3, 16, 8, 3, 4),
    (3, 5, 8, 6, 7, 5),
    (4, 1, 2, 8, 2, 6),
    (4, 3, 3, 8, 4, 3),
    (5, 3, 1, 3, 4, 4),
    (7, 3, 8, 4, 1, 1),
    (8, 3, 5, 4, 3, 3),
    (16, 3, 16, 8, 5, 2),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("frames", "kernel", "groups", "channels", "height", "width"), SIZES)
def test_real_arithmetic_equals_the_fft_form(frames, kernel, groups, channels, height, width, training):
    reference = awake(DTFBlock(channels, frames, kernel, groups, backend="reference").double())
    ours = DTFBlock(channels, frames, kernel, groups).double()
    ours.load_state_dict(reference.state_dict())
    x = clip(2, channels, frames, height, width)
    grad = clip(2, channels, frames, height, width + 1)[..., 1:]
    results = []
    for block in (reference, ours):
        leaf = x.clone().requires_grad_()
        y = block.train(training)(leaf)
        results.append([y.detach(), *torch.autograd.grad(y, (leaf, *block.parameters()), grad)])
    for expected, result in zip(*results, strict=True):
        assert_close(result, expected, 1e-10)
    for name, expected in reference.norm.state_dict().items():
        assert_close(ours.norm.state_dict()[name], expected, 1e-12, name)


def test_block_gradcheck():
    block = awake(DTFBlock(2, 3, 3, 4).double())
    torch.autograd.gradcheck(block, clip(2, 2, 3, 2, 3).requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_fresh_block_is_exactly_the_identity(training, backend):
    block = DTFBlock(16, 4, backend=backend).train(training)
    x = clip(2, 16, 4, 5, 6, dtype=torch.float32)
    assert torch.equal(block(x), x)


def test_at_step_0_only_alpha_and_bias_get_a_gradient():
    block = DTFBlock(16, 4)
    block(clip(2, 16, 4, 5, 6, dtype=torch.float32)).square().sum().backward()
    nonzero = {name for name, p in block.named_parameters() if p.grad is not None and p.grad.any()}
    assert nonzero == {"alpha", "bias"}


def test_initial_values():
    torch.manual_seed(0)
    block = DTFBlock(64, 4)
    assert block.filter_weight.shape == (4, 64 * 3 * 2 // 16, 64 + 9)
    # Kaiming normal, fan_out, of a 1x1 convolution with 24 outputs.
    assert block.filter_weight.std().item() == pytest.approx((2 / 24) ** 0.5, rel=0.05)
    assert block.mix_weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_every_memory_layout_gives_the_same_answer():
    block = awake(DTFBlock(8, 4).double()).eval()
    x = clip(2, 8, 4, 5, 3)
    expected = block(x)
    for order in [(0, 2, 3, 4, 1), (4, 3, 2, 1, 0), (2, 0, 1, 3, 4)]:
        inverse = [order.index(axis) for axis in range(5)]
        assert_close(block(x.permute(order).contiguous().permute(inverse)), expected, 1e-13)


def test_a_clip_alone_equals_the_clip_in_a_batch():
    block = awake(DTFBlock(8, 4).double()).eval()
    x = clip(3, 8, 4, 5, 3)
    together = block(x)
    for index in range(3):
        assert_close(block(x[index : index + 1]), together[index : index + 1], 1e-13)


def test_an_empty_batch_passes_in_evaluation():
    assert DTFBlock(8, 4).eval()(torch.zeros(0, 8, 4, 5, 3)).shape == (0, 8, 4, 5, 3)


def test_frozen_statistics_stay_as_they_are():
    block = awake(DTFBlock(8, 4)).train()
    block.norm.eval()
    before = copy.deepcopy(block.norm.state_dict())
    x = clip(2, 8, 4, 5, 3, dtype=torch.float32)
    assert torch.equal(block(x), block.eval()(x))
    assert all(torch.equal(before[name], value) for name, value in block.norm.state_dict().items())


def test_folded_frames_give_the_same_answer():
    block = awake(DTFBlock(8, 4).double()).eval()
    x = clip(3, 8, 4, 5, 6)
    frames = x.transpose(1, 2).flatten(0, 1)
    expected = block(x).transpose(1, 2).flatten(0, 1)
    assert_close(block.on_frames(frames, 4), expected, 1e-13)
    last = block.on_frames(frames.contiguous(memory_format=torch.channels_last), 4)
    assert_close(last, expected, 1e-13)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_16_bit_error_is_at_most_twice_that_of_the_reference(dtype, training):
    # Over drawn weights the ratio of the largest errors, a noisy figure of so small a clip, is 1.3 to 3.0;
    # that of their norms, at most 2, is what tests/models/test_precision.py holds larger blocks to.
    torch.manual_seed(0)
    exact = awake(DTFBlock(16, 4, backend="reference").double()).train(training)
    plain = DTFBlock(16, 4, backend="reference").train(training)
    ours = DTFBlock(16, 4).train(training)
    plain.load_state_dict(exact.state_dict())
    ours.load_state_dict(exact.state_dict())
    x = clip(4, 16, 4, 9, 8, dtype=torch.float64).to(dtype)
    truth = exact(x.double())
    with torch.autocast("cpu", dtype=dtype):
        errors = [(block(x).double() - truth).abs() for block in (ours, plain)]
        assert ours(x).dtype == dtype
    assert errors[0].max() <= 2 * errors[1].max()
    assert errors[0].mean() <= 2 * errors[1].mean()


def test_autocast_of_a_float32_clip():
    block = awake(DTFBlock(16, 4)).eval()
    x = clip(2, 16, 4, 5, 6, dtype=torch.float32)
    expected = block(x)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(block(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = block(x)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, expected)  # the mix multiplies in bfloat16
    assert_close(rounded, expected, 1e-2)


def test_transforms_survive_changes_of_dtype():
    block = DTFBlock(8, 5).bfloat16()
    assert block.analysis.dtype == torch.float32
    block.double()
    analysis, synthesis = real_dft(5)
    assert torch.equal(block.analysis, analysis)
    assert torch.equal(block.synthesis, synthesis)
    assert not {"analysis", "synthesis"} & set(block.state_dict())


def test_the_norm_is_converted_to_synchronised_batch_norm():
    block = awake(DTFBlock(8, 4).double()).eval()
    x = clip(2, 8, 4, 5, 3)
    expected = block(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert_close(converted(x), expected, 1e-13)


@pytest.mark.slow
def test_compiles_as_one_graph():
    block = awake(DTFBlock(8, 4))
    x = clip(2, 8, 4, 5, 3, dtype=torch.float32).requires_grad_()
    expected = block(x)
    wanted = torch.autograd.grad(expected.sum(), (x, *block.parameters()))
    twin = copy.deepcopy(block)
    twin.compile(fullgraph=True, backend="aot_eager")
    result = twin(x)
    gradients = torch.autograd.grad(result.sum(), (x, *twin.parameters()))
    assert_close(result.detach(), expected.detach(), 1e-5)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())
    assert list(twin.state_dict()) == list(block.state_dict())


def test_exports_with_one_operator():
    block = awake(DTFBlock(8, 4)).eval()
    x = clip(2, 8, 4, 5, 3, dtype=torch.float32)
    exported = torch.export.export(block, (x,))
    names = [str(node.target) for node in exported.graph.nodes if "dtf." in str(node.target)]
    assert names == ["dtf.frame_wise_aggregation.default"]
    assert_close(exported.module()(x), block(x), 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DTFBlock(8, 4)(torch.zeros(1, 8, 5, 3, 3)),
            r"takes \(B, 8, 4, H, W\), got \(1, 8, 5, 3, 3\)",
        ),
        (lambda: DTFBlock(8, 4)(torch.zeros(1, 7, 4, 3, 3)), r"takes \(B, 8, 4, H, W\)"),
        (lambda: DTFBlock(8, 4)(torch.zeros(8, 4, 3, 3)), r"takes \(B, 8, 4, H, W\)"),
        (
            lambda: DTFBlock(8, 4, filter_groups=7),
            r"must divide .* = 48, got 7; allowed up to 64: \[1, 2, 3, 4",
        ),
        (lambda: DTFBlock(8, 4, kernel_size=2), "kernel_size must be odd"),
        (lambda: DTFBlock(8, 0), "num_frames must be a positive integer, got 0"),
        (lambda: DTFBlock(8.0, 4), "dim must be a positive integer, got 8.0"),
        (lambda: DTFBlock(8, 4, backend="cuppy")(torch.zeros(1, 8, 4, 3, 3)), "did you mean 'cupy'"),
    ],
)
def test_wrong_sizes_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
