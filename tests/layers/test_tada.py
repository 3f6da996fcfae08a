"""TAda's layers: golden numbers, every T, layouts, what a fresh one does, networks that become calibrated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from golden_files import files, stored
from torch import Tensor, nn
from torch.nn import functional as F

from dtf.layers import (
    RouteFuncMLP,
    RouteFuncTransformer,
    TAdaConv2d,
    TAdaConv2dV2,
    TAdaConv3d,
    temporal_layers,
    to_tada,
)
from dtf.layers.tada import PooledNorm, RoutedConv2d, mean_of_neighbours

# Relative to the largest entry.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SIZES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str = "", least: float = 0) -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected.double()).abs().max().item()
    assert error <= tolerance * max(least, expected.abs().max().item()), f"{name} is {error:.1e} away"


def check_golden(
    layer: nn.Module,
    values: dict[str, Tensor],
    inputs: list[str],
    dtype: torch.dtype,
    training: bool,
    **more: object,
) -> None:
    """Outputs, gradients and running statistics, by the original's names of parameters."""
    layer.to(dtype).train(training)
    state = {k.removeprefix("param_"): v.to(dtype) for k, v in values.items() if k.startswith("param_")}
    missing, unexpected = layer.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    tensors = [values[name].to(dtype).requires_grad_() for name in inputs]
    out = layer(*tensors, **more)
    names = ["out"] if isinstance(out, Tensor) else ["out0", "out1"]
    outs = [out] if isinstance(out, Tensor) else list(out)
    for name, y in zip(names, outs, strict=True):
        assert_close(y.detach(), values[name], TOLERANCE[dtype], name)
    grads = [values[name.replace("out", "grad_out")].to(dtype) for name in names]
    torch.autograd.backward(outs, grads)
    for name, tensor in zip(inputs, tensors, strict=True):
        assert_close(tensor.grad, values[f"grad_{name}"], TOLERANCE[dtype], name)
    for name, parameter in layer.named_parameters():
        # Gradients that are zero but for rounding: a bias ahead of a norm.
        assert_close(parameter.grad, values[f"gradparam_{name}"], TOLERANCE[dtype], name, least=1)
    after = {k.removeprefix("after_"): v for k, v in values.items() if k.startswith("after_")}
    for name, buffer in after.items():
        assert_close(layer.get_buffer(name), buffer, TOLERANCE[dtype], name)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", files("tada", "routefunc_mlp", 4))
def test_golden_routing_v1(path, dtype):
    values, meta = stored(path)
    layer = RouteFuncMLP(meta["c_in"], meta["ratio"], meta["kernels"])
    check_golden(layer, values, ["x"], dtype, meta["training"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", files("tada", "routefunc_transformer", 4))
def test_golden_routing_v2(path, dtype):
    values, meta = stored(path)
    names = ("c_in", "ratio", "kernels", "with_bias_cal", "zero_init_cal", "head_dim")
    layer = RouteFuncTransformer(*(meta[name] for name in names))
    check_golden(layer, values, ["x"], dtype, meta["training"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", [*files("tada", "tadaconv2d", 6), *files("tada", "tadaconv3d", 3)])
def test_golden_convolutions(path, dtype):
    values, meta = stored(path)
    kind = TAdaConv2d if meta["op"] == "TAdaConv2d" else TAdaConv3d
    layer = kind(*(meta[name] for name in SIZES), meta["cal_dim"])
    check_golden(layer, values, ["x", "alpha"], dtype, False)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", files("tada", "tadaconv2dv2", 5))
def test_golden_convolution_v2(path, dtype):
    values, meta = stored(path)
    own = ("cal_dim", "num_frames", "rf_r", "rf_k", "head_dim", "internal_rf_func", "internal_temp_aggr")
    arguments = {name: meta[name] for name in (*SIZES, *own) if name in meta}
    layer = TAdaConv2dV2(**arguments)
    inputs = [name for name in ("feat", "w_alpha", "b_alpha") if name in values]
    check_golden(layer, values, inputs, dtype, meta["training"], reshape_required=meta["reshape_required"])


def clip(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def awake(layer: nn.Module) -> nn.Module:
    """With a response where a fresh layer has none."""
    torch.manual_seed(0)
    for parameter in layer.double().parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return layer.eval()


def routed(*sizes: int, **more: object) -> RoutedConv2d:
    torch.manual_seed(0)
    return RoutedConv2d(TAdaConv2d(*sizes, **more))


def test_the_snippet_of_the_paper_runs():
    x = torch.randn(2, 64, 4, 8, 8)
    convolution = TAdaConv2d(64, 64, [1, 3, 3], [1, 1, 1], [0, 1, 1], bias=False, cal_dim="cin")
    y = convolution(x, RouteFuncMLP(c_in=64, ratio=4, kernels=[3, 3])(x))
    assert y.shape == x.shape
    plain = F.conv3d(x, convolution.weight[0, 0][:, :, None], padding=(0, 1, 1))
    assert_close(y, plain, 1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_run(number):
    page = (Path(__file__).parents[2] / "docs" / "tada.md").read_text("utf-8")
    exec(re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)[number], {})


@pytest.mark.parametrize("cal_dim", ["cin", "cout"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_frame_has_its_own_kernel(cal_dim, steps):
    layer = TAdaConv2d(4, 6, 3, 2, 1, groups=2, cal_dim=cal_dim).double()
    x, alpha = clip(2, 4, steps, 7, 5), clip(2, 4 if cal_dim == "cin" else 6, steps, 1, 1)
    y = layer(x, alpha)
    for b in range(2):
        for t in range(steps):
            factor = alpha[b, :, t, 0, 0]
            factor = (
                factor.view(2, 1, 2).expand(2, 3, 2).reshape(6, 2, 1, 1)
                if cal_dim == "cin"
                else factor.view(6, 1, 1, 1)
            )
            kernel = layer.weight[0, 0] * factor
            expected = F.conv2d(x[b : b + 1, :, t], kernel, layer.bias.flatten(), 2, 1, 1, 2)
            assert_close(y[b : b + 1, :, t].detach(), expected.detach(), 1e-12)


def test_a_kernel_over_time_is_that_of_the_frame_of_its_result():
    layer = TAdaConv3d(4, 2, 3, 1, 1, groups=2).double()
    x, alpha = clip(1, 4, 5, 4, 3), clip(1, 4, 5, 1, 1)
    y = layer(x, alpha)
    for t in range(5):
        whole = F.conv3d(x * alpha[:, :, t : t + 1], layer.weight[0, 0], layer.bias.flatten(), 1, 1, 1, 2)
        assert_close(y[:, :, t].detach(), whole[:, :, t].detach(), 1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_mean_of_neighbours_counts_what_is_beyond_the_clip(steps):
    x = clip(2, 3, steps, 2, 2)
    frames = x.transpose(1, 2).flatten(0, 1)
    ours = mean_of_neighbours(frames, steps).unflatten(0, (2, steps)).transpose(1, 2)
    kernel = torch.full((3, 1, 3, 1, 1), 1 / 3, dtype=torch.float64)
    assert_close(ours, F.conv3d(x, kernel, padding=(1, 0, 0), groups=3), 1e-14)


LAYERS = {
    "v1": lambda: routed(8, 6, 3, 2, 1),
    "v2": lambda: TAdaConv2dV2(8, 8, 3, 1, 1, groups=8, cal_dim="cout", rf_r=2, head_dim=2),
    "pooled norm": lambda: PooledNorm(8),
    "routing v2": lambda: RouteFuncTransformer(8, 2, [3, 3], head_dim=2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(2, 8, 3, 5, 4), (1, 8, 1, 1, 1), (2, 8, 2, 4, 7)])
def test_every_memory_layout_and_every_batch_gives_the_same_answer(name, shape):
    layer, x = awake(LAYERS[name]()), clip(*shape)
    expected = layer(x).detach()
    reverse = (4, 3, 2, 1, 0)
    for other in (
        x.contiguous(memory_format=torch.channels_last_3d),
        x.permute(reverse).contiguous().permute(reverse),
    ):
        assert_close(layer(other).detach(), expected, 1e-12)
    assert_close(layer(x[:1]).detach(), expected[:1], 1e-12)
    assert layer(x[:0]).shape == (0, *expected.shape[1:])


def test_gradients():
    layer = awake(routed(4, 3, 3, 2, 1))
    x = clip(1, 4, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_a_fresh_layer_is_what_it_replaces_and_an_initialiser_can_see_it():
    conv = TAdaConv2d(8, 6, 3, 2, 1)
    x = torch.randn(2, 8, 4, 6, 6)
    frames = x.transpose(1, 2).flatten(0, 1)
    plain = F.conv2d(frames, conv.weight[0, 0], conv.bias.flatten(), 2, 1)
    assert torch.equal(RoutedConv2d(conv).on_frames(frames, 4), plain)
    norm = PooledNorm(8)
    assert torch.equal(norm.on_frames(frames, 4), nn.BatchNorm2d(8)(frames))
    modules = [RouteFuncMLP(8, 4, [3, 3]), RouteFuncTransformer(8, 4, [3, 3], True, head_dim=2), norm]
    modules.append(TAdaConv2dV2(8, 8, 3, 1, 1, rf_r=2, head_dim=2))
    flagged = [n for m in modules for n, part in m.named_modules() if getattr(part, "skip_init", False)]
    assert flagged == ["b", "b", "b_bias", "pool_norm", "bn_b"]


def test_a_fresh_kernel_is_as_large_as_that_of_an_ordinary_convolution():
    torch.manual_seed(0)
    ours, ordinary = TAdaConv2d(32, 128, 3, groups=2), nn.Conv2d(32, 128, 3, groups=2)
    for name in ("weight", "bias"):
        ratio = getattr(ours, name).std() / getattr(ordinary, name).std()
        assert ratio.item() == pytest.approx(1, rel=0.1)


def test_maps_show_what_the_calibration_changes():
    layer, x = awake(routed(8, 6, 3, 2, 1)), clip(2, 8, 3, 5, 4)
    maps = layer.explain(x)
    assert maps.values.shape == (2, 3, 3, 2)
    plain = F.conv2d(x[:, :, 1], layer.conv.weight[0, 0], layer.conv.bias.flatten(), 2, 1)
    expected = (layer(x)[:, :, 1] - plain).square().mean(dim=1)
    torch.testing.assert_close(maps.values[:, 1], expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: TAdaConv2d(4, 4, [3, 3, 3]), r"kernel_size must be \(1, height, width\) or one number, got"),
        (lambda: TAdaConv2d(4, 4, 3, [2, 1, 1]), "stride must be"),
        (lambda: TAdaConv2d(4, 4, 3, groups=3), "groups must divide in_channels 4"),
        (lambda: TAdaConv2d(4, 4, 3, cal_dim="both"), "cal_dim must be 'cin' or 'cout', got 'both'"),
        (lambda: TAdaConv3d(4, 4, 2), "odd number of frames"),
        (lambda: RouteFuncMLP(4, 8, [3, 3]), "use a ratio of 4 or less"),
        (lambda: RouteFuncMLP(4, 2, [2, 3]), "two odd numbers of frames"),
        (lambda: RouteFuncTransformer(8, 2, [3, 3]), r"head_dim must divide c_in // ratio = 4, got 64"),
        (lambda: TAdaConv2dV2(4, 8, 3), "internal_rf_func=False"),
        (lambda: routed(4, 4, 3)(torch.zeros(4, 4, 3, 3)), r"takes \(B, 4, T, H, W\), got \(4, 4, 3, 3\)"),
        (
            lambda: RoutedConv2d(TAdaConv2d(4, 4, 3), num_frames=2)(torch.zeros(5, 4, 3, 3)),
            "no whole clips of 2",
        ),
        (lambda: TAdaConv2d(4, 6, 3)(torch.zeros(1, 4, 2, 3, 3), torch.ones(1, 6, 2, 1, 1)), "alpha must be"),
        (lambda: TAdaConv2dV2(4, 4, 3, internal_rf_func=False)(torch.zeros(1, 4, 2, 3, 3)), "needs w_alpha"),
        (
            lambda: TAdaConv2dV2(4, 4, 3, rf_r=2, head_dim=2)(torch.zeros(9, 4, 4), reshape_required=True),
            r"takes tokens \(H\*H, B\*num_frames, C\), got \(9, 4, 4\) and num_frames=None",
        ),
        (
            lambda: TAdaConv2dV2(4, 4, 3, rf_r=2, head_dim=2, num_frames=2)(
                torch.zeros(9, 4, 4), reshape_required=True
            ),
            r"tokens need a convolution that keeps \(3, 3\) places, got \(1, 1\)",
        ),
    ],
)
def test_wrong_sizes_are_named(work, message):
    with pytest.raises(ValueError, match=message):
        work()


@pytest.mark.parametrize("kind", ["slow", "slowfast"])
def test_networks_of_pytorchvideo_become_calibrated(kind: str) -> None:
    models = pytest.importorskip("pytorchvideo.models")
    torch.manual_seed(0)
    if kind == "slow":
        network = models.create_resnet(
            model_depth=50, model_num_class=3, stem_dim_out=16, head_pool_kernel_size=(4, 1, 1)
        )
        video = torch.randn(1, 3, 4, 32, 32)
    else:
        network = models.create_slowfast(
            model_depth=18,
            model_num_class=3,
            slowfast_fusion_conv_stride=(2, 1, 1),
            stem_dim_outs=(16, 2),
            head_pool_kernel_sizes=((4, 1, 1), (8, 1, 1)),
        )
        video = [torch.randn(1, 3, steps, 32, 32) for steps in (4, 8)]
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    before = network(list(video) if kind == "slowfast" else video)
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size == (1, 3, 3) and module.in_channels > 3
    ]
    assert len(names) == {"slow": 16, "slowfast": 7}[kind]
    assert to_tada(network, names, ratio=2) is network
    after = network(list(video) if kind == "slowfast" else video)
    torch.testing.assert_close(after, before)
    for layer in temporal_layers(network).values():
        nn.init.normal_(layer.rf.b.weight, std=0.1)
    trained = network(list(video) if kind == "slowfast" else video)
    assert (trained - before).abs().max() > 1e-4


def test_to_tada_takes_image_networks_on_folded_frames() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)).eval()
    frames = torch.randn(6, 3, 9, 9)
    before = network(frames)
    to_tada(network, ["2"], num_frames=3)
    assert torch.equal(network(frames), before)
    nn.init.normal_(network[2].rf.b.weight)
    trained = network(frames)
    # Clips are by themselves.
    torch.testing.assert_close(network(frames[:3]), trained[:3])
    assert not torch.allclose(network(frames.flip(0)), trained.flip(0))


@pytest.mark.parametrize(
    ("names", "num_frames", "message"),
    [
        (
            ["0", "nothing"],
            4,
            r"'nothing' must be one of the network's convolutions, got nothing of that name; it has 0",
        ),
        (["0", "1"], 4, "'1' must be one of the network's convolutions, got ReLU"),
        (["0"], None, "say with num_frames"),
        (
            ["0", "2"],
            4,
            "'2': over time kernel, stride, padding and dilation must be 1, 1, 0 and 1, got 3, 1, 0, 1",
        ),
        (["0", "3"], 4, "'3': padding must be numbers of zeros"),
    ],
)
def test_what_cannot_be_calibrated_is_named_and_nothing_changes(names, num_frames, message):
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.Conv2d(8, 8, 3, padding="same")
    )
    before = list(network)
    with pytest.raises(ValueError, match=message):
        to_tada(network, names, num_frames=num_frames)
    assert list(network) == before
