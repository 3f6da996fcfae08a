"""16-bit training of the block: against float64, our error is at most twice that of the plain formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from quick import quick
from torch import Tensor
from torch.nn import functional as F

from dtf.models import DTFBlock, create_model
from dtf.ops.frame_wise_aggregation.reference import frame_wise_aggregation


def plain(block: DTFBlock, x: Tensor) -> Tensor:
    """The paper's formulas as one would write them under autocast: FFT and complex numbers in float32."""
    enriched, correlation = frame_wise_aggregation(x, block.kernel_size, 1)
    batch, channels, frames, height, width = x.shape
    spectrum = torch.fft.rfft(enriched.float(), dim=2, norm="ortho")
    weight = block.filter_weight.permute(1, 2, 0).flatten(1)[:, :, None, None]
    predicted = F.conv2d(torch.cat([enriched, correlation], dim=1).flatten(1, 2), weight).float()
    predicted = predicted.repeat_interleave(block.filter_groups, dim=1)
    re, im = predicted.view(batch, channels, frames // 2 + 1, 2, height, width).unbind(dim=3)
    filtered = spectrum * torch.complex(re, im)
    mixed = torch.einsum("oc,bcfhw->bofhw", torch.view_as_complex(block.mix_weight), filtered)
    parts = torch.view_as_real(mixed)
    normal = torch.view_as_complex(block.norm(parts.flatten(2)).float().view_as(parts).contiguous())
    response = torch.fft.irfft(block.alpha.view(-1, 1, 1, 1) * normal, n=frames, dim=2, norm="ortho")
    return (x + response + block.bias.view(-1, 1, 1, 1)).to(x.dtype)


def run(forward: Callable[[DTFBlock, Tensor], Tensor], block: DTFBlock, x: Tensor, grad: Tensor):
    """Returns what the block adds to x, the gradient of x, and those of the parameters."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    y = forward(block, x)
    y.backward(grad.to(y.dtype))
    results = {"response": y.detach().double() - x.detach().double(), "x": x.grad}
    results |= {name: parameter.grad for name, parameter in block.named_parameters()}
    return {name: value.detach().double() for name, value in results.items()}


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("frames", quick([4, 5, 16], 5))
@pytest.mark.parametrize("residual", [False, True], ids=["16-bit input", "float32 input"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(
    dtype: torch.dtype, residual: bool, frames: int, mean: float
) -> None:
    torch.manual_seed(0)
    block = DTFBlock(64, frames)
    with torch.no_grad():
        block.alpha.normal_()
        block.bias.normal_()
    x = torch.randn(2, 64, frames, 12, 11) + mean * torch.randn(1, 64, 1, 1, 1)
    x = x.to(dtype).to(torch.float32 if residual else dtype)
    grad = torch.randn(x.shape).to(dtype)
    exact = run(lambda b, x: b(x), copy.deepcopy(block).double(), x.double(), grad.double())
    with torch.autocast("cpu", dtype):
        ours = run(lambda b, x: b(x), block, x, grad)
        theirs = run(plain, block, x, grad)
    for name, value in exact.items():
        scale = value.norm()
        mine, reference = (ours[name] - value).norm() / scale, (theirs[name] - value).norm() / scale
        # Gradients that plain torch takes in float32 altogether (the bias) are not held to twice nothing.
        assert mine <= max(2 * reference, 1e-6), f"{name}: {mine:.1e}, plain torch {reference:.1e}"


def test_float16_keeps_its_range() -> None:
    # Features at which the spectrum times its filter, about 5e5, is beyond float16.
    torch.manual_seed(0)
    block = DTFBlock(32, 4)
    torch.nn.init.normal_(block.alpha)
    x = (60 * torch.randn(2, 32, 4, 6, 6)).half().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = block(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.slow
def test_bfloat16_training_follows_float32() -> None:
    """50 steps of dtf_tiny on moving dots under autocast: a loss within noise of float32's, no NaN."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randint(2, (32,), generator=generator)
    start = torch.randint(24, (32, 2), generator=generator)
    video = 0.3 * torch.randn(32, 3, 4, 24, 24, generator=generator)
    for n in range(32):
        for t in range(4):
            shift = 4 * t if direction[n] else -4 * t
            row, column = start[n, 0], (start[n, 1] + shift) % 24
            video[n, :, t, row, column] += 8
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        model = create_model("dtf_tiny", num_classes=2, clip_length=4, widths=(16, 16, 16, 16))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        losses[dtype] = []
        for step in range(50):
            batch = slice(step % 4 * 8, step % 4 * 8 + 8)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = F.cross_entropy(model(video[batch]).float(), direction[batch])
            optimiser.zero_grad()
            loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            optimiser.step()
            losses[dtype].append(loss.item())
    ends = [sum(values[-8:]) / 8 for values in losses.values()]
    assert abs(ends[0] - ends[1]) < 0.15, losses
