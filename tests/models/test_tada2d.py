"""TAda2D: golden blocks and logits through the conversion, image weights, first weights, order of frames."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import pytest
import torch
from golden_files import original_state, stored
from quick import quick
from timm.models.resnet import downsample_conv
from torch import Tensor, nn

from dtf.layers import layer_maps, temporal_layers
from dtf.layers.tada import TADA, PooledNorm, RoutedConv2d, TAdaOptions
from dtf.layers.temporal import Temporal
from dtf.lit.optim import OptimConfig, parameter_groups
from dtf.models import VideoNetwork, convert_original_state_dict, create_model
from dtf.models.resnet import Carried, TemporalBottleneck
from dtf.models.weights.convert import CONVERSIONS

GOLDEN = golden_files.GOLDEN / "tada"
SMALL = {"layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16], "num_classes": 3}


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str, least: float = 0) -> None:
    error = (ours - expected).abs().max().item()
    assert error <= tolerance * max(least, expected.abs().max().item()), f"{name} is {error:.1e} away"


FILES = {
    "tada2d_resnet50": "model_tada2d_r50_nc400_1x3x8x64x64",
    "tada2d_resnet101": "model_tada2d_r101_nc20_1x3x8x64x64",
}
TAPS = {"backbone.conv1": "act1"} | {f"backbone.conv{n}": f"layer{n - 1}" for n in range(2, 6)}
TAPS["backbone.conv2.res_1.conv_branch.b_rf"] = "layer1.0.conv2.rf.b"


@pytest.mark.parametrize("name", quick(FILES, "tada2d_resnet50"))
def test_golden_networks(name: str) -> None:
    path = GOLDEN / f"{FILES[name]}.npz"
    values, meta = stored(path)
    model = create_model(name, values["logits"].shape[1], clip_length=8)
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    entries = original_state(path.with_suffix(".state.json"))
    state, report = convert_original_state_dict(entries, model)
    assert not report.dead
    assert len(report.converted) == len(entries)
    model.load_state_dict(state, strict=True)
    model.double().eval()
    taps: dict[str, Tensor] = {}
    for theirs, ours in TAPS.items():
        module = model.backbone.get_submodule(ours)
        module.register_forward_hook(lambda m, args, out, theirs=theirs: taps.update({theirs: out}))
    generator = torch.Generator().manual_seed(meta["input_seed"])
    x = torch.randn(meta["input_shape"], generator=generator).double()
    with torch.inference_mode():
        logits = model(x)
        assert_close(logits, values["logits"], 1e-7, "logits")
        for theirs, tap in taps.items():
            folded = tap.dim() == 4
            # The routing function adds 1 to what its last convolution gives.
            flat = (model.unfold(tap) if folded else 1 + tap).contiguous().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64]
            torch.testing.assert_close(
                sample, values[f"tap_{theirs}_sample"], rtol=1e-7, atol=1e-9, msg=theirs
            )
        narrow = model.float()(x.float())
    assert_close(narrow.double(), values["logits"], 1e-4, "float32")


def test_the_same_parameters_are_decayed() -> None:
    """Each parameter filled with its original's decay, carried over by the conversion."""
    groups = json.loads((GOLDEN / "param_groups_tada2d_k400.json").read_text())["groups"]
    assert {group["lr_mult"] for group in groups} == {1.0}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    entries = json.loads((GOLDEN / f"{FILES['tada2d_resnet50']}.state.json").read_text())["state"]
    original = {name: torch.full(shape, decay.get(name, 0.0)) for name, shape, *_ in entries}
    with torch.device("meta"):
        model = create_model("tada2d_resnet50", 400, clip_length=8)
    state, _ = convert_original_state_dict(original, model)
    ours = parameter_groups(model, OptimConfig(name="sgd", lr=0.24, weight_decay=1e-4))
    for group in ours:
        for name in group["param_names"]:
            values = set(state[name].unique().tolist())
            assert values == {torch.tensor(group["weight_decay"]).item()}, name
    assert sum(len(group["params"]) for group in ours) == len(decay)


@pytest.mark.parametrize(("classes", "count"), [(400, 27_485_472), (174, 27_022_398)])
def test_published_sizes(classes: int, count: int) -> None:
    with torch.device("meta"):
        model = create_model("tada2d_resnet50", num_classes=classes, clip_length=8)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("tada2d_block_*.npz")), ids=lambda path: path.stem)
def test_golden_blocks(path: Path) -> None:
    values, meta = stored(path)
    inputs, outputs = values["x"].shape[1], values["out"].shape[1]
    steps = values["x"].shape[2]
    stride = 2 if meta["downsampling"] else 1
    shortcut = downsample_conv(inputs, outputs, 1, stride) if "param_short_cut.weight" in values else None
    temporal = Temporal(TADA, TAdaOptions(routing_ratio=meta["route_func_r"]))
    carried = Carried(temporal, steps, iter([(meta["stage"], meta["block"])]), 1)
    block = TemporalBottleneck(inputs, outputs // 4, stride, shortcut, carried=carried).double()
    block.train(meta["training"])
    ours = {
        name: translated(name.split("_", 1)[1]) for name in values if name.startswith(("param_", "after_"))
    }
    wanted = block.state_dict()
    state = {
        ours[name]: CONVERSIONS["tada"].reshape(values[name], wanted[ours[name]])
        for name in ours
        if name.startswith("param_")
    }
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = values["x"].requires_grad_()
    y = block(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, steps)).transpose(1, 2)
    assert_close(y.detach(), values["out"], 1e-9, "out")
    y.backward(values["grad_out"])
    assert_close(x.grad, values["grad_x"], 1e-9, "grad_x")
    gradients = {n: p.grad for n, p in block.named_parameters()}
    for name, our in ours.items():
        if f"grad{name}" in values:
            assert_close(gradients[our], values[f"grad{name}"].view_as(gradients[our]), 1e-9, name, least=1)
        elif name.startswith("after_"):
            assert_close(block.get_buffer(our), values[name], 1e-9, name)


def translated(name: str) -> str:
    """Our name within a block of the original's."""
    network = VideoNetwork.__new__(VideoNetwork)
    full = CONVERSIONS["tada"].translate(f"backbone.conv2.res_1.{name}", network)
    return full.removeprefix("backbone.layer1.0.")


def test_weights_of_image_networks_arrive_as_in_the_original() -> None:
    values, _ = stored(GOLDEN / "weight_conversion_resnet.npz")
    layers = {".conv2.": RoutedConv2d, ".bn2.": PooledNorm}
    network = VideoNetwork.__new__(VideoNetwork)
    from_image = {}
    for name, tensor in values.items():
        if not name.startswith("in_") or name == "in_fc.weight":
            continue
        name = name.removeprefix("in_")
        found = next((part for part in layers if part in name), None)
        if found:
            block, parameter = name.split(found)
            for key, own in layers[found].from_image(None, {parameter: tensor}).items():
                from_image[f"backbone.{block}{found}{key}"] = own
        else:
            from_image[f"backbone.{name}"] = tensor
    expected = {}
    for name, tensor in values.items():
        if name.startswith("out_"):
            ours = CONVERSIONS["tada"].translate(name.removeprefix("out_"), network)
            expected[ours] = CONVERSIONS["tada"].reshape(tensor, from_image[ours])
    assert set(expected) == set(from_image)
    for name, tensor in expected.items():
        assert torch.equal(from_image[name], tensor), name


def small(**more: object) -> VideoNetwork:
    torch.manual_seed(0)
    return create_model("tada2d_resnet50", **SMALL, **more).eval()


def test_image_weights_make_a_network_that_sees_frame_by_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = create_model("c2d_resnet50", clip_length=1, temporal_stride=1, **SMALL)
    path = tmp_path / "image.pth"
    torch.save({k.removeprefix("backbone."): v for k, v in image.state_dict().items()}, path)
    clips, frames = (small(clip_length=steps, pretrained=str(path)) for steps in (3, 1))
    frames.load_state_dict(clips.state_dict())
    state = clips.state_dict()
    own = image.state_dict()
    assert torch.equal(
        state["backbone.layer2.0.conv2.conv.weight"][0, 0], own["backbone.layer2.0.conv2.weight"]
    )
    assert torch.equal(state["backbone.layer2.0.bn2.norm.weight"], own["backbone.layer2.0.bn2.weight"])
    video = torch.randn(2, 3, 3, 40, 33)
    alone = torch.stack([frames(video[:, :, t]) for t in range(3)]).mean(dim=0)
    torch.testing.assert_close(clips(video), alone)


def test_calibration_sees_the_order_of_frames() -> None:
    model = small(clip_length=4)
    video = torch.randn(1, 3, 4, 32, 32)
    still = model(video)
    torch.testing.assert_close(model(video.flip(2)), still)
    for layer in temporal_layers(model).values():
        if isinstance(layer, RoutedConv2d):
            nn.init.normal_(layer.rf.b.weight)
    assert (model(video.flip(2)) - model(video)).abs().max() > 1e-4


def test_stem_and_stages() -> None:
    with torch.device("meta"):
        model = create_model("tada2d_resnet50", clip_length=8)
    assert isinstance(model.backbone.maxpool, nn.Identity)
    assert model.dropout == 0.5
    layers = temporal_layers(model)
    assert sorted({name.rsplit(".", 1)[1] for name in layers}) == ["bn2", "conv2"]
    assert len(layers) == 32
    strides = [layer.conv.stride[1] for layer in layers.values() if isinstance(layer, RoutedConv2d)]
    assert strides == [2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    for stage in (model.backbone.layer1, model.backbone.layer2):
        assert stage[0].downsample[0].stride == (2, 2)
    plain = create_model("tada_tiny", temporal_pool=False)
    assert all(isinstance(layer, RoutedConv2d) for layer in temporal_layers(plain).values())


def test_a_fresh_network_is_drawn_as_the_published_one() -> None:
    torch.manual_seed(0)
    model = create_model("tada2d_resnet50", num_classes=10, clip_length=4)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            wanted = 0.0 if name.endswith("pool_norm") else 1.0
            assert (module.weight == wanted).all(), name
            assert not module.bias.any()
        if name.endswith("rf.b"):
            assert not module.weight.any()
        elif isinstance(module, nn.Conv2d | nn.Conv3d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
            assert module.bias is None or not module.bias.any()
    kernel = model.backbone.layer3[1].conv2.conv.weight
    assert kernel.std().item() == pytest.approx((3 * 256 * 9) ** -0.5, rel=0.05)


def test_conversion_is_strict() -> None:
    path = GOLDEN / f"{FILES['tada2d_resnet101']}.npz"
    entries = original_state(path.with_suffix(".state.json"))
    with torch.device("meta"):
        model = create_model("tada2d_resnet101", num_classes=20, clip_length=8)
    del entries["backbone.conv2.res_1.conv_branch.b_rf.g.bias"]
    entries["backbone.conv2.res_1.conv_branch.d.weight"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"unknown entry backbone\.conv2\.res_1\.conv_branch\.d.*nothing for backb"
    ):
        convert_original_state_dict(entries, model)


def test_every_calibration_explains_itself() -> None:
    found = layer_maps(small(clip_length=3), torch.randn(1, 3, 3, 64, 64))
    assert list(found) == [f"backbone.layer{stage}.0.conv2" for stage in range(1, 5)]
    assert found["backbone.layer2.0.conv2"].values.shape == (1, 3, 8, 8)
