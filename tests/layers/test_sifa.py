"""SIFABlock: golden numbers within a bottleneck, any number of frames, offsets of zero, precision."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from golden_files import stored
from torch import Tensor, nn

from dtf.layers import Looks, SIFABlock

GOLDEN = Path(__file__).parents[1] / "golden" / "sifa"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Bottleneck(nn.Module):
    """The original's, whose shortcut is its input."""

    def __init__(self, inputs: int, planes: int, kernel_size: int, backend: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(inputs, planes, 1, bias=False), nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3, self.bn3 = nn.Conv3d(planes, inputs, 1, bias=False), nn.BatchNorm3d(inputs)
        self.sifa = SIFABlock(planes, kernel_size, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(self.sifa(y))) + x).relu()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected.double()).abs().max()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{name} is {error:.1e} away"


# The one with a stride is in test_sifa_networks.py.
FILES = sorted(GOLDEN.glob("bottleneck_in16_*.npz"))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_bottleneck(path, backend, dtype):
    values, meta = stored(path)
    block = Bottleneck(meta["inplanes"], meta["planes"], meta["K"], backend).to(dtype)
    block.train(meta["training"])
    named = lambda name: name.replace("conv_offset", "sifa.conv_offset")  # noqa: E731
    parameters = {k.removeprefix("param_"): v for k, v in values.items() if k.startswith("param_")}
    state = {named(k): v.to(dtype) for k, v in parameters.items() if not k.startswith("def_cor")}
    assert not block.load_state_dict(state, strict=False).unexpected_keys
    tolerance = TOLERANCE[dtype]

    u = values["sifa_input"].to(dtype)
    places = block.sifa.offsets(u)
    assert_close(places.detach(), values["offset"], tolerance, "offset")
    # The constant 1 / C that the files were made with is exact here: C is 4.
    assert_close(block.sifa.weights(u, places).detach(), values["correlation"], tolerance, "correlation")
    assert_close(block.sifa(u).detach(), values["sifa_output"], tolerance, "sifa_output")

    x = values["x"].to(dtype).requires_grad_()
    y = block(x)
    assert_close(y.detach(), values["out"], tolerance, "out")
    y.backward(values["grad_out"].to(dtype))
    assert_close(x.grad, values["grad_x"], tolerance, "x")
    for name, parameter in block.named_parameters():
        expected = values["gradparam_" + name.removeprefix("sifa.")]
        assert_close(parameter.grad, expected, tolerance, name)


def test_all_golden_files_are_there():
    assert len(FILES) == 4


def test_the_last_frame_stays_and_the_others_see_the_next_alone():
    x, block = draw(1, 4, 5, 6, 5), SIFABlock(4, offset_init="kaiming").double()
    y = block(x)
    assert torch.equal(y[:, :, -1], x[:, :, -1])
    other = x.clone()
    other[:, :, 3] += 1
    changed = (block(other) - y).abs().amax(dim=(0, 1, 3, 4)) > 0
    # Frame 3 is seen by frame 2, and moves what frame 3 sees in frame 4.
    assert changed.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("options", [{}, {"deform": False}, {"attention": "softmax"}])
def test_one_frame_alone_is_left_as_it_is(options):
    x = draw(2, 4, 1, 3, 3)
    assert torch.equal(SIFABlock(4, **options).double()(x), x)


@pytest.mark.parametrize("attention", ["none", "softmax"])
def test_a_fresh_block_has_offsets_of_zero_and_equals_one_without(attention):
    x = draw(2, 4, 3, 5, 6)
    fresh, without = (SIFABlock(4, attention=attention, deform=deform).double() for deform in (True, False))
    assert not fresh.offsets(x).any()
    assert not list(without.parameters())
    assert_close(fresh(x).detach(), without(x), 1e-13)


def test_offsets_from_the_features_alone():
    x = draw(1, 4, 3, 5, 6)
    block = SIFABlock(4, offset_init="kaiming", rescale_offsets=False).double()
    assert_close(block.offsets(x).detach(), block.conv_offset(x).detach(), 1e-13)


def test_offsets_stay_in_float32_under_autocast_and_in_16_bits():
    x, block = draw(1, 4, 3, 5, 6, dtype=torch.float32), SIFABlock(4, offset_init="kaiming")
    exact = block.offsets(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block.offsets(x), exact)
        assert block(x).dtype == torch.float32
    narrow = x.bfloat16()
    assert_close(block.offsets(narrow).detach(), block.offsets(narrow.float()).detach(), 1e-6)
    assert block(narrow).dtype == torch.bfloat16


def test_folded_frames_are_clips():
    x, block = draw(2, 4, 3, 5, 6), SIFABlock(4, offset_init="kaiming").double()
    frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    folded = block.on_frames(frames, 3).unflatten(0, (-1, 3)).transpose(1, 2)
    assert_close(folded.detach(), block(x).detach(), 1e-13)


def test_maps_are_told_apart_by_taps():
    maps = SIFABlock(4).explain(draw(2, 4, 3, 5, 6, dtype=torch.float32))
    assert maps.values.shape == (2, 9, 5, 6)
    assert maps.labels[0] == "row -1, column -1"


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_run(number):
    page = (Path(__file__).parents[2] / "docs" / "sifa.md").read_text("utf-8")
    variables = {}
    exec(re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)[number], variables)
    if number == 0:
        assert variables["y"].shape == variables["found"].shape == variables["x"].shape
    else:
        assert variables["looks"].mean().shape == (1, 3, 2, 9, 12)


def test_a_pixel_looked_where_its_thing_has_gone():
    x = torch.zeros(1, 4, 2, 7, 7)
    x[0, :, 0, 3, 3] = x[0, :, 1, 2, 4] = 1
    looks = SIFABlock(4, deform=False).explain(x).looks
    assert looks.displacement.shape == (1, 1, 9, 2, 7, 7)
    assert looks.weights.shape == (1, 1, 9, 7, 7)
    assert looks.mean()[0, 0, :, 3, 3].tolist() == [-1, 1]
    # Offsets move the places that are looked at, those of the frame in which they lie.
    block = SIFABlock(4, offset_init="kaiming")
    moved = block.explain(x).looks.displacement - looks.displacement
    offsets = block.offsets(x)[0, :, 1].unflatten(0, (9, 2))
    assert_close(moved[0, 0].detach(), offsets.detach(), 1e-6)
    with pytest.raises(ValueError, match=r"displacement must be \(1, 1, 9, 2, 7, 7\), got"):
        Looks(looks.displacement[:, :, :8], looks.weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SIFABlock(0), "channels must be a positive integer, got 0"),
        (lambda: SIFABlock(4, 2), "kernel_size must be odd"),
        (lambda: SIFABlock(4, offset_init="ones"), "offset_init must be zero or kaiming, got 'ones'"),
        (lambda: SIFABlock(4, attention="max"), "attention must be none or softmax, got 'max'"),
        (lambda: SIFABlock(4)(draw(1, 3, 2, 3, 3)), r"takes \(B, 4, T, H, W\), got \(1, 3, 2, 3, 3\)"),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("attends", "told"), [(True, 1), (False, 0.5)])
def test_a_block_tells_where_a_dot_goes(attends: bool, told: float):
    # A dot at each place of a row, a pixel further in each of three frames: both ways hold the same frames.
    places, ways = torch.cartesian_prod(torch.arange(2, 10), torch.tensor([-1, 1])).T
    dots = nn.functional.one_hot(places[:, None] + ways[:, None] * torch.arange(-1, 2), 12).float()
    clips, labels = nn.functional.pad(dots[:, None, :, None], (0, 0, 2, 2)), (ways > 0).long()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv3d(1, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8), nn.ReLU()),
        SIFABlock(8, deform=False, attention="softmax") if attends else nn.Identity(),
        *(nn.Conv3d(8, 16, (1, 3, 3)), nn.BatchNorm3d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(clips), labels).backward()
        optimizer.step()
    assert (network(clips).argmax(dim=1) == labels).float().mean() == told
