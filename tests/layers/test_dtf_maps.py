"""What DTF blocks did with a clip: the FFT form of the block, energy conservation, both kinds of backbone."""

from __future__ import annotations

import math

import pytest
import torch
from test_dtf import awake, clip
from torch import nn

from dtf.layers import DTFBlock
from dtf.layers.dtf import response_energy
from dtf.models import create_model, layer_maps
from dtf.ops import frame_wise_aggregation

SWIN = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 32,
    "filter_groups": 8,
}
RESNET = {"widths": [8, 8, 16, 16], "stem_width": 8, "filter_groups": 8}


def by_fft(block: DTFBlock, x: torch.Tensor) -> torch.Tensor:
    """The filtered spectrum by the formulas of the paper, written here once more."""
    frames = block.num_frames
    frequencies = frames // 2 + 1
    enriched, correlation = frame_wise_aggregation(x, block.kernel_size, backend="reference")
    features = torch.cat([enriched, correlation], dim=1)
    shared = torch.einsum("toi,bithw->bohw", block.filter_weight, features)
    g = shared.repeat_interleave(block.filter_groups, dim=1).unflatten(1, (block.dim, frequencies, 2))
    filtered = torch.fft.rfft(enriched, dim=2, norm="ortho") * torch.complex(g[:, :, :, 0], g[:, :, :, 1])
    mixed = torch.einsum("oc,bcfhw->bofhw", torch.view_as_complex(block.mix_weight.detach()), filtered)
    scale = block.alpha / (block.norm.running_var + block.norm.eps).sqrt()
    spectrum = mixed * scale.view(-1, 1, 1, 1)
    ends = [0, frames // 2] if frames % 2 == 0 else [0]
    # The inverse ignores imaginary parts at the ends.
    spectrum[:, :, ends] = spectrum[:, :, ends].real.to(spectrum.dtype)
    weight = torch.full((frequencies,), 2.0, dtype=x.dtype)
    weight[ends] = 1
    return (spectrum.abs() ** 2 * weight.view(-1, 1, 1)).mean(dim=1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("frames", "groups"), [(1, 4), (4, 16), (5, 3), (8, 16)])
def test_equals_the_fft_form(frames, groups, backend):
    block = awake(DTFBlock(8, frames, 3, groups, backend=backend).double()).eval()
    x = clip(2, 8, frames, 5, 3)
    with torch.no_grad():
        found, expected = response_energy(block, x), by_fft(block, x)
    assert found.shape == (2, frames // 2 + 1, 5, 3)
    assert (found - expected).abs().max() <= 1e-10 * expected.max()


def test_sums_to_the_energy_that_the_block_adds():
    block = awake(DTFBlock(8, 6).double()).eval()
    x = clip(2, 8, 6, 4, 4)
    with torch.no_grad():
        added = block(x) - x - block(torch.zeros_like(x))
        assert torch.allclose(response_energy(block, x).sum(dim=1), added.square().sum(dim=2).mean(dim=1))


# Not 4: frames are enriched by their successors, which cancels what flips from each frame to the next.
@pytest.mark.parametrize("frequency", range(4))
def test_what_flickers_f_times_is_filtered_at_f(frequency):
    """Frequency f is f cycles per clip: a column of pixels that flickers at each."""
    block = DTFBlock(8, 8, kernel_size=1).eval()
    nn.init.ones_(block.alpha)
    time = torch.arange(8) * 2 * math.pi / 8
    x = torch.zeros(1, 8, 8, 4, 1)
    x[0, :, :, frequency, 0] = torch.cos(frequency * time).expand(8, 8)
    with torch.no_grad():
        energy = response_energy(block, x)[0, :, :, 0]
    assert energy.sum(dim=0).argmax() == frequency
    assert energy[:, frequency].argmax() == frequency


def test_an_empty_place_is_not_filtered():
    block = awake(DTFBlock(8, 4)).eval()
    x = torch.zeros(1, 8, 4, 9, 9)
    x[..., 2, 3] = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        energy = response_energy(block, x)[0].sum(dim=0)
    assert energy.flatten().argmax() == 2 * 9 + 3
    assert energy[6:].max() == 0


@pytest.mark.parametrize(("name", "arguments"), [("dtf_tiny", RESNET), ("dtf_swin_tiny", SWIN)])
def test_every_block_of_a_network(name, arguments):
    model = create_model(name, num_classes=3, clip_length=4, temporal_stride=1, **arguments).double()
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, DTFBlock)}
    video = clip(2, 3, 4, 32, 32)
    for seed, block in enumerate(blocks.values()):
        awake(block, seed).norm.momentum = 1.0
    model.train()(video)  # statistics of this video: features stay of order one
    inputs = {}
    handles = [
        block.register_forward_pre_hook(lambda module, args, n=n: inputs.update({n: args[0]}))
        for n, block in blocks.items()
    ]
    model.backbone.eval()  # a mode of its own, to be kept
    found = layer_maps(model, video)
    assert list(found) == list(inputs)
    assert len(found) == len(blocks) >= 3
    assert model.training
    assert not model.backbone.training
    for handle in handles:
        handle.remove()
    for n, block in blocks.items():
        assert not block._forward_pre_hooks
        with torch.no_grad():
            expected = by_fft(block, inputs[n])
        assert found[n].values.shape == (2, 3, *inputs[n].shape[3:])
        assert found[n].labels == ("mean over time", "1 per clip", "2 per clip")
        assert (found[n].values - expected).abs().max() <= 1e-9 * expected.max()
        # Each clip by itself.
        alone = layer_maps(model, video[1:])[n].values
        assert torch.allclose(alone[0], found[n].values[1])


def test_a_control_has_none():
    assert layer_maps(create_model("c2d_tiny", 3, clip_length=4), torch.zeros(1, 3, 4, 32, 32)) == {}


def test_training_mode_is_refused_and_modes_come_back_after_an_error():
    with pytest.raises(ValueError, match="evaluation mode"):
        response_energy(DTFBlock(8, 4), torch.zeros(1, 8, 4, 2, 2))
    model = create_model("dtf_tiny", 3, clip_length=4, **RESNET).train()
    with pytest.raises(ValueError, match="built for clips of 4 frames"):
        layer_maps(model, torch.zeros(1, 3, 5, 32, 32))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
