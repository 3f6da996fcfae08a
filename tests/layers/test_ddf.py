"""DDFPack, DDFUpPack, FilterNorm: golden numbers, clips, sizes, layouts, precision, explanation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from golden_files import files, stored
from torch import Tensor, nn

from dtf.layers import DDFPack, DDFUpPack, FilterNorm

# Relative to the largest entry.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
BACKENDS = ["auto", "reference"]


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max(), f"{name} is {error:.1e} away"


def check_golden(layer: nn.Module, values: dict[str, Tensor], inputs: list[str], dtype: torch.dtype) -> None:
    """Output and gradients for inputs and parameters, whose names are the original's."""
    layer.to(dtype)
    state = {k.removeprefix("param_"): v.to(dtype) for k, v in values.items() if k.startswith("param_")}
    layer.load_state_dict(state)
    tensors = [values[name].to(dtype).requires_grad_() for name in inputs]
    y = layer(*tensors)
    assert_close(y.detach(), values["out"], TOLERANCE[dtype], "out")
    y.backward(values["grad_out"].to(dtype))
    for name, tensor in zip(inputs, tensors, strict=True):
        assert_close(tensor.grad, values[f"grad_{name}"], TOLERANCE[dtype], name)
    for name, parameter in layer.named_parameters():
        expected = values[f"gradparam_{name}"]
        # Gradients that are zero but for rounding (a bias ahead of a norm over the taps).
        scale = max(1.0, expected.abs().max().item())
        assert (parameter.grad.double() - expected).abs().max() <= TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", files("ddf", "filternorm", 5))
def test_golden_filter_norm(path, dtype):
    values, meta = stored(path)
    names = ("in_channels", "kernel_size", "filter_type", "nonlinearity", "running_std", "running_mean")
    norm = FilterNorm(*(meta[name] for name in names))
    assert norm.std is not None or norm.scale == pytest.approx(meta["const_std"], rel=1e-15)
    check_golden(norm, values, ["x"], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", files("ddf", "pack", 6))
def test_golden_pack(path, backend, dtype):
    values, meta = stored(path)
    check_golden(
        DDFPack(**{k: v for k, v in meta.items() if k != "op"}, backend=backend), values, ["x"], dtype
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", files("ddf", "uppack", 4))
def test_golden_up_pack(path, dtype):
    values, meta = stored(path)
    layer = DDFUpPack(**{k: v for k, v in meta.items() if k not in ("op", "patched")})
    check_golden(layer, values, [name for name in ("x", "joint_x") if name in values], dtype)


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def pack(*args: object, **options: object) -> DDFPack:
    torch.manual_seed(0)
    return DDFPack(*args, **options).double()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_clip_is_filtered_frame_by_frame(stride):
    layer, clip = pack(10, stride=stride), image(2, 10, 3, 6, 4)
    y = layer(clip)
    assert y.shape == (2, 10, 3, 6 // stride, 4 // stride)
    for t in range(3):
        assert_close(y[:, :, t].detach(), layer(clip[:, :, t]).detach(), 1e-13)


def test_frames_of_a_clip_may_share_the_filters_of_their_channels():
    layer, clip = pack(10, clip_filter=True), image(2, 10, 3, 6, 4)
    frames = clip.transpose(1, 2).flatten(0, 1)
    by_channel, _ = layer.filters(frames, 3)
    assert torch.equal(by_channel[0], by_channel[2])
    assert not torch.allclose(by_channel[0], by_channel[3])  # of another clip
    # The means of the clip are those of its frames side by side.
    beside, _ = layer.filters(torch.cat(clip.unbind(2), dim=3))
    assert_close(by_channel[::3].detach(), beside.detach(), 1e-12)
    # One frame is its own clip.
    alone = pack(10)
    assert_close(layer(clip[:, :, :1]).detach(), alone(clip[:, :, :1]).detach(), 1e-13)


@pytest.mark.parametrize(("rule", "size"), [("ceil", (4, 3)), ("floor", (3, 2))])
def test_odd_sizes_with_a_stride_follow_the_rule(rule, size):
    layer, x = pack(10, stride=2, size_rule=rule), image(1, 10, 7, 5).requires_grad_()
    y = layer(x)
    assert y.shape == (1, 10, *size)
    # Each result is that of the unstrided layer at twice its place.
    whole = pack(10)(x)[:, :, ::2, ::2]
    assert_close(y.detach(), whole[:, :, : size[0], : size[1]].detach(), 1e-12)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_filters_of_one_tap_are_rescaled_alone():
    norm = FilterNorm(2, 1, "spatial", "relu")
    x = image(1, 2, 3, 3)
    assert_close(norm(x), x * 2**0.5, 1e-15)
    layer, x = pack(10, kernel_size=1), image(2, 10, 3, 4)
    by_channel, by_pixel = layer.filters(x)
    assert_close(layer(x).detach(), (x * by_channel[:, :, None, None] * by_pixel).detach(), 1e-13)


@pytest.mark.parametrize("shape", [(2, 10, 5, 7), (1, 10, 1, 1), (0, 10, 4, 4)])
@pytest.mark.parametrize("head", [1, 2])
def test_every_memory_layout_gives_the_same_answer(shape, head):
    layer, x = pack(10, head=head), image(*shape)
    expected = layer(x).detach()
    reverse = (3, 2, 1, 0)
    turned = x.permute(reverse).contiguous().permute(reverse)
    for other in (x.contiguous(memory_format=torch.channels_last), turned):
        y = layer(other).detach()
        assert y.shape == expected.shape
        assert torch.allclose(y, expected, rtol=0, atol=1e-12)


def test_heads_own_channels_that_follow_each_other():
    layer = pack(10, head=2)
    x = image(1, 10, 4, 4)
    changed = x.clone()
    before = layer(x)
    with torch.no_grad():
        layer.spatial_branch[0].bias[:9] += torch.arange(9.0)  # of head 0
    after = layer(changed)
    assert not torch.allclose(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("large", [False, True])
def test_guidance_has_its_own_width_and_either_size(large):
    torch.manual_seed(0)
    layer = DDFUpPack(10, joint_channels=3).double()
    x, joint = image(2, 10, 4, 5), image(2, 3, 8, 10) if large else image(2, 3, 4, 5)
    y = layer(x, joint)
    assert y.shape == (2, 10, 8, 10)
    # Position (i, j) of a block is guided by the guidance at its own place.
    changed = joint.clone()
    changed[:, :, 1, 0] += 1
    moved = (layer(x, changed) - y).abs().amax(dim=(0, 1)) > 0
    places = [(1, 0)] if large else [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert moved.nonzero().tolist() == [list(place) for place in places]


def test_the_depth_wise_convolution_keeps_the_size():
    assert DDFUpPack(10, kernel_size=3, dw_kernel_size=5)(image(1, 10, 4, 4).float()).shape == (1, 10, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_16_bit_error_is_at_most_twice_that_of_plain_torch(combine, dtype):
    exact = pack(20, kernel_combine=combine)
    x = image(2, 20, 8, 9).to(dtype)
    results = []
    for backend in ("auto", "reference"):
        layer = DDFPack(20, kernel_combine=combine, backend=backend)
        layer.load_state_dict(exact.state_dict())
        inner = x.clone().requires_grad_()
        y = layer.to(dtype)(inner)
        assert y.dtype == dtype
        results.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), [inner])))
    exact.load_state_dict(layer.state_dict())
    wide = x.double().requires_grad_()
    y = exact(wide)
    truth = (y.detach(), *torch.autograd.grad(y.square().sum(), [wide]))
    for ours, plain, right in zip(*results, truth, strict=True):
        error, allowed = ((value.double() - right).abs() for value in (ours, plain))
        assert error.mean() <= 2 * allowed.mean()
        assert error.max() <= 2 * allowed.max()


def test_filters_are_normalised_in_float32_under_autocast():
    layer, x = pack(20).float(), image(2, 20, 8, 9).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        by_channel, by_pixel = layer.filters(x)
    assert y.dtype == torch.float32
    # The convolutions run in bfloat16, the statistics do not: the mean of a filter's taps is zero to
    # rounding.
    mean = by_pixel.double().mean(dim=1).abs().max()
    assert mean <= 2**-9 * by_pixel.abs().max()
    assert by_channel.isfinite().all()
    assert ((y - exact).abs().max() / exact.abs().max()) < 0.05


@pytest.mark.slow
def test_compiles_whole():
    layer, x = pack(10, stride=2, clip_filter=True).float(), image(1, 10, 2, 5, 4).float()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()


def test_explanation_has_a_map_for_each_tap():
    maps = pack(10, stride=2, head=2).eval().explain(image(2, 10, 3, 6, 4))
    assert maps.values.shape == (2, 9, 3, 2)
    assert maps.labels[:2] == ("-1,-1", "-1,0")
    # A tap answers where the one pixel of an image is its neighbour.
    dot = torch.zeros(1, 1, 1, 5, 5, dtype=torch.float64)
    dot[..., 2, 2] = 1.0
    energy = pack(1, se_ratio=1.0).eval().explain(dot).values[0]
    for k in range(9):
        assert energy[k].nonzero().tolist() == [[2 - (k // 3 - 1), 2 - (k % 3 - 1)]]


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_the_explained_taps_add_up_to_the_layer(combine):
    layer = pack(2, se_ratio=1.0, kernel_combine=combine).eval()
    # Where one tap alone sees the image, its energy is that of the layer.
    dot = torch.zeros(1, 2, 1, 5, 5, dtype=torch.float64)
    dot[..., 2, 2] = torch.tensor([1.0, -2.0]).view(1, 2, 1)
    energy = layer.explain(dot).values.sum(dim=1)
    assert_close(energy, layer(dot).detach()[:, :, 0].square().mean(dim=1), 1e-12)


def test_filters_whose_taps_are_alike_have_finite_gradients():
    x = torch.ones(1, 9, 2, 2, requires_grad=True)
    y = FilterNorm(1, 3, "spatial")(x)
    assert not y.any()
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_parameters_have_the_names_of_the_original():
    names = ["spatial_branch.0.weight", "spatial_branch.0.bias"]
    names += [f"channel_branch.{i}.{kind}" for i in (1, 3) for kind in ("weight", "bias")]
    assert list(DDFPack(10).state_dict()) == [*names, "channel_branch.4.std"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDFPack(10, head=3), r"head must divide in_channels 10, got 3; allowed: \[1, 2, 5, 10\]"),
        (lambda: DDFPack(4), r"in_channels \* se_ratio must be at least 1.*use se_ratio=0.25"),
        (lambda: DDFPack(10, kernel_size=4), "kernel_size must be odd"),
        (lambda: DDFPack(10, stride=0), "stride must be a positive integer, got 0"),
        (lambda: DDFPack(10, kernel_combine="sum"), "kernel_combine must be mul or add, got 'sum'"),
        (lambda: DDFPack(10, size_rule="round"), "size_rule must be ceil or floor, got 'round'"),
        (
            lambda: DDFPack(10)(torch.zeros(1, 9, 4, 4)),
            r"DDFPack takes \(B, 10, H, W\) or .*got \(1, 9, 4, 4\)",
        ),
        (
            lambda: DDFPack(10, stride=2, size_rule="floor")(torch.zeros(1, 10, 1, 4)),
            "at least stride=2 rows and columns",
        ),
        (lambda: FilterNorm(1, 3, "pixel"), "filter_type must be 'spatial' or 'channel', got 'pixel'"),
        (lambda: FilterNorm(2, 3, "channel")(torch.zeros(1, 18, 2, 1)), r"takes \(B, 18, 1, 1\), got"),
        (lambda: DDFUpPack(10)(torch.zeros(1, 3, 4, 4)), r"takes x \(B, 10, H, W\), got"),
        (lambda: DDFUpPack(10, joint_channels=3)(torch.zeros(1, 10, 4, 4)), "guidance of 3 channels: pass"),
        (
            lambda: DDFUpPack(10, joint_channels=3)(torch.zeros(1, 10, 4, 4), torch.zeros(1, 3, 5, 4)),
            r"joint_x must be \(1, 3, 4, 4\) or \(1, 3, 8, 8\).*got \(1, 3, 5, 4\)",
        ),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_run(number):
    page = (Path(__file__).parents[2] / "docs" / "ddf.md").read_text("utf-8")
    exec(re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)[number], {})
