"""SIFA's networks: golden blocks, logits and conversions, sizes, two heads, one step, image weights."""

from __future__ import annotations

from pathlib import Path

import golden_files
import pytest
import timm
import torch
from golden_files import original_state, stored
from timm.models.resnet import Bottleneck, ResNet, downsample_conv
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from dtf.layers import temporal_layers
from dtf.layers.sifa import SIFA, ConvolutionStep, SIFAOptions, SIFAStep
from dtf.layers.temporal import Place, Temporal
from dtf.models import VideoNetwork, convert_original_state_dict, create_model
from dtf.models.resnet import Carried, TemporalBottleneck
from dtf.models.swin import _carrying
from dtf.models.weights.convert import CONVERSIONS
from dtf.models.weights.images import inflate

GOLDEN = golden_files.GOLDEN / "sifa"
SMALL = {"num_classes": 3, "clip_length": 8, "layers": [1, 2, 1, 2], "widths": [8, 8, 16, 16]}
SMALL_SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 1], "image_size": 32, "window_size": 4}


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str, least: float = 0) -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected).abs().max().item()
    assert error <= tolerance * max(least, expected.abs().max().item()), f"{name} is {error:.1e} away"


# ---- whole networks ----

NETWORKS = {
    "model_c2d_sifa_resnet50_std0.03_clip8_nc10_1x3x8x96x64": ("sifa_resnet50", {}),
    "model_c2d_sifa_resnet50_std0.03_clip16_nc10_1x3x16x64x64_deep_stem": (
        "sifa_resnet50",
        {"deep_stem": True},
    ),
    "model_sifa_swin_mini": (
        "sifa_swin_small",
        {"image_size": 56, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]},
    ),
    "model_sifa_swin_mini_noshift": (
        "sifa_swin_small",
        {"image_size": 28, "embed_dim": 16, "depths": [2], "num_heads": [4]},
    ),
}


def logits_of(model: VideoNetwork, video: Tensor) -> dict[str, Tensor]:
    if not hasattr(model, "heads"):
        return {"logits": model(video)}
    logits, dual = model.heads(model.stem.fold(video)).unbind(1)
    return {"logits": logits, "logits_dual": dual, "prob_mean": model(video).softmax(1)}


@pytest.mark.parametrize("file", NETWORKS)
def test_golden_networks(file: str) -> None:
    values, meta = stored(GOLDEN / f"{file}.npz")
    name, arguments = NETWORKS[file]
    model = create_model(name, values["logits"].shape[1], meta["clip_length"], **arguments).double().eval()
    entries = original_state(GOLDEN / f"{file}.state.json")
    state, report = convert_original_state_dict(entries, model)
    assert sorted([*report.converted, *report.dead]) == sorted(entries)
    model.load_state_dict(state, strict=True)
    constants = ("def_cor.weight", "attn_mask", "position_index")
    dead = sum(entries[name].numel() for name in report.dead if not name.endswith(constants))
    assert sum(p.numel() for p in model.parameters()) + dead == meta["params_trainable"]
    generator = torch.Generator().manual_seed(meta["input_seed"])
    video = torch.randn(meta["input_shape"], generator=generator).double()
    with torch.inference_mode():
        for key, ours in logits_of(model, video).items():
            assert_close(ours, values[key], 1e-7, key)
        for key, ours in logits_of(model.float(), video.float()).items():
            assert_close(ours, values[key], 1e-4, f"{key} in float32")


def test_what_the_original_never_uses_is_reported() -> None:
    entries = original_state(GOLDEN / "model_sifa_swin_mini.state.json")
    model = create_model(NETWORKS["model_sifa_swin_mini"][0], 11, **NETWORKS["model_sifa_swin_mini"][1])
    _, report = convert_original_state_dict(entries, model)
    assert report.dead["layers.0.blocks.0.conv.weight"].startswith("convolution over time of a block that")
    assert report.dead["layers.0.blocks.1.tda_norm.bias"].startswith("norm of a shifted block")
    assert report.dead["layers.0.blocks.0.def_cor.weight"] == "constant 1/C"
    assert len(report.dead) == 14
    with pytest.raises(ValueError, match=r"nothing for backbone\.layers\.0\.blocks\.0\.sifa\.norm\.weight"):
        convert_original_state_dict(
            {k: v for k, v in entries.items() if k != "layers.0.blocks.0.tda_norm.weight"}, model
        )


def test_offsets_are_unused_in_a_branch_of_one_step_alone() -> None:
    with torch.device("meta"):
        model = create_model("sifa_resnet50", 10, clip_length=8)
        plain = create_model("sifa_resnet50", 10, clip_length=8, deform=False)
    entries = original_state(GOLDEN / "model_c2d_sifa_resnet50_std0.03_clip8_nc10_1x3x8x96x64.state.json")
    _, report = convert_original_state_dict(entries, model)
    dead = {name for name in report.dead if "def_cor" not in name}
    assert dead == {"layer4_dual.1.conv_offset.weight"}
    with pytest.raises(ValueError, match=r"unknown entry layer2\.1\.conv_offset\.weight"):
        convert_original_state_dict(entries, plain)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("sifa_resnet50", 43_040_928),
        ("sifa_resnet101", 63_554_272),
        ("sifa_swin_small", 60_954_586),
        ("sifa_swin_base", 108_134_216),
        ("sifa_swin_large", 242_785_828),
    ],
)
def test_published_sizes(name: str, published: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 400)
    ours = sum(p.numel() for p in model.parameters())
    # Every block of the published Swins owns a norm and a convolution, of which it uses one.
    for layer in temporal_layers(model).values():
        if isinstance(layer, SIFAStep):
            ours += 3 * layer.attend.channels**2
        if isinstance(layer, ConvolutionStep):
            ours += 2 * layer.conv.in_channels
    assert ours == published


# ---- blocks ----


def parameters_of(values: dict[str, Tensor], translate) -> dict[str, Tensor]:
    """Of a block in our names and shapes."""
    found = {translate(k.removeprefix("param_")): v for k, v in values.items() if k.startswith("param_")}
    return {k: v for k, v in found.items() if "def_cor" not in k and "attn_mask" not in k}


@pytest.mark.parametrize(
    "file", ["gcontext_bottleneck_in32_p8_2x3x5x6_eval", "bottleneck_in12_p6_K3_1x2x8x6_s2_eval"]
)
def test_golden_bottlenecks(file: str) -> None:
    values, meta = stored(GOLDEN / f"{file}.npz")
    inputs, planes, stride = meta["inplanes"], meta["planes"], meta.get("stride", 1)
    steps = values["x"].shape[2]
    shortcut = downsample_conv(inputs, 4 * planes, 1, stride) if meta.get("downsample") else None
    # Contexts stand in even blocks, attention in odd ones.
    index = 0 if "gcontext" in file else 1
    carried = Carried(Temporal(SIFA, SIFAOptions(global_context=True)), steps, iter([(1, index)]), 1)
    block = TemporalBottleneck(inputs, planes, stride, shortcut, carried=carried).double().eval()
    network = create_model("sifa_resnet50", **SMALL)

    def translate(name: str) -> str:
        return CONVERSIONS["sifa"].translate(f"layer1.0.{name}", network).removeprefix("backbone.layer1.0.")

    wanted = block.state_dict()
    state = {
        name: CONVERSIONS["sifa"].reshape(tensor, wanted[name]) if ".sifa" not in name else tensor
        for name, tensor in parameters_of(values, translate).items()
    }
    assert {name.rsplit(".", 1)[1] for name in wanted.keys() - state.keys()} == {"num_batches_tracked"}
    block.load_state_dict(state, strict=False)
    x = values["x"].requires_grad_()
    y = block(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, steps)).transpose(1, 2)
    assert_close(y.detach(), values["out"], 1e-9, "out")
    y.backward(values["grad_out"])
    assert_close(x.grad, values["grad_x"], 1e-9, "x")
    gradients = {name: p.grad for name, p in block.named_parameters()}
    for key in values:
        if key.startswith("gradparam_") and "def_cor" not in key:
            name = translate(key.removeprefix("gradparam_"))
            assert_close(gradients[name].flatten(), values[key].flatten(), 1e-9, name, least=1)


@pytest.mark.parametrize("path", golden_files.files("sifa", "swinblock", 3))
def test_golden_swin_blocks(path: Path) -> None:
    values, meta = stored(path)
    dim, side, steps = meta["dim"], meta["input_resolution"], meta["clip_len"]
    shift = meta["effective_shift"]
    plain = SwinTransformerBlock(
        dim, side, meta["num_heads"], window_size=meta["window_size"], shift_size=meta["shift_size"]
    )
    place = Place("after_attention", dim, steps, 0, 0, shifted=any(plain.shift_size))
    assert place.shifted is bool(shift)
    options = SIFAOptions(deform=False, first_stage=0, every=1)
    block = _carrying(plain, Temporal(SIFA, options), place).double().eval()
    wanted = block.state_dict()

    def translate(name: str) -> str:
        name = CONVERSIONS["sifa"].translate(f"layers.0.blocks.0.{name}", swin)
        return name.removeprefix("backbone.layers.0.blocks.0.")

    swin = create_model("sifa_swin_small", 2, **SMALL_SWIN)
    found = parameters_of(values, translate)
    state = {k: CONVERSIONS["sifa"].reshape(v, wanted[k]) for k, v in found.items() if k in wanted}
    assert len(found) - len(state) == len(meta["params_without_gradient"])
    missing, _ = block.load_state_dict(state, strict=False)
    assert not [name for name in missing if not name.endswith(("attn_mask", "position_index"))]
    x = values["x"].requires_grad_()
    y = block(x.unflatten(1, side)).flatten(1, 2)
    assert_close(y.detach(), values["out"], 1e-9, "out")
    y.backward(values["grad_out"])
    assert_close(x.grad, values["grad_x"], 1e-9, "x")
    gradients = {name: p.grad for name, p in block.named_parameters()}
    for key in values:
        name = translate(key.removeprefix("gradparam_"))
        if key.startswith("gradparam_") and name in gradients:
            expected = CONVERSIONS["sifa"].reshape(values[key], gradients[name])
            assert_close(gradients[name], expected, 1e-9, name)


# ---- two heads ----


def test_in_evaluation_scores_are_the_mean_of_both_heads_and_in_training_there_are_both() -> None:
    torch.manual_seed(0)
    model = create_model("sifa_resnet50", **SMALL)
    video = torch.randn(2, 3, 8, 32, 32)
    assert model(video).shape == (2, 2, 3)
    model.eval()
    heads = model.heads(model.stem.fold(video))
    torch.testing.assert_close(model(video).softmax(1), heads.softmax(2).mean(1))


def test_without_the_second_branch_there_is_one_head() -> None:
    model = create_model("sifa_resnet50", **SMALL, dual=False)
    assert model(torch.randn(2, 3, 8, 32, 32)).shape == (2, 3)
    assert not [name for name, _ in model.named_parameters() if "dual" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_length": 4}, "clips of 4 frames have one step: take clip_length=8 or more, or dual=false"),
        ({"num_classes": 1}, "need 2 classes: take dual=false"),
    ],
)
def test_what_two_heads_cannot_do_is_refused(arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model("sifa_resnet50", **{**SMALL, **arguments})


@pytest.mark.parametrize(("clip_length", "stride"), [(12, 4), (5, 1)])
def test_a_step_without_a_partner_is_seen_by_the_main_branch_alone(clip_length: int, stride: int) -> None:
    torch.manual_seed(0)
    model = create_model("sifa_resnet50", **{**SMALL, "clip_length": clip_length}, temporal_stride=stride)
    video = torch.randn(1, 3, clip_length, 32, 32)
    other = video.clone()
    other[:, :, -stride:] += 1
    # In the shared stages the last step changes what the one before sees in it; fresh blocks add nothing.
    main, dual = (model.eval().heads(model.stem.fold(other)) - model.heads(model.stem.fold(video)))[0]
    assert main.any()
    assert not dual.any()


# ---- one step ----


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sifa_resnet50", SMALL | {"clip_length": 4, "dual": False}),
        ("sifa_swin_small", SMALL_SWIN | {"clip_length": 4, "num_classes": 3}),
    ],
)
def test_a_clip_of_one_step_has_nothing_that_joins_steps(name: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = create_model(name, **arguments)
    model(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert {type(layer).__name__ for layer in temporal_layers(model).values()} <= {"GlobalContext"}


# ---- weights of image networks ----


def test_image_weights_of_a_resnet_are_placed_as_in_the_original() -> None:
    values, meta = stored(GOLDEN / "weight_transfer_resnet.npz")
    model = create_model("sifa_resnet50", **SMALL, temporal_stride=meta["early_stride"])
    image = {k.removeprefix("in_"): v for k, v in values.items() if k.startswith("in_")}
    ours = model.image_state(image)
    ours["conv1.weight"] = model.stem.inflate(ours["conv1.weight"])
    expected = {k.removeprefix("out_"): v for k, v in values.items() if k.startswith("out_")}
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name].flatten(), tensor.flatten()), name


def test_image_weights_of_a_swin_are_placed_as_in_the_original() -> None:
    values, meta = stored(GOLDEN / "weight_transfer_swin.npz")
    model = create_model("sifa_swin_small", **SMALL_SWIN)
    kernel = values["in_patch_embed.proj.weight"]
    assert model.stem.kernel == meta["early_stride"]
    assert torch.equal(model.stem.inflate(kernel).flatten(), values["out_patch_embed.proj.weight"].flatten())
    # Convolutions over time begin at zero, with image weights and without.
    assert not values["out_layers.0.blocks.0.conv.weight"].any()
    assert not model.backbone.layers[0].blocks[1].sifa.conv.weight.any()


@pytest.mark.parametrize("deep_stem", [False, True])
def test_published_image_weights_are_of_the_same_stem(
    deep_stem: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a download: timm's network of that name, whose weights are drawn."""
    asked = []

    def load(model: VideoNetwork, pretrained: object, name: str) -> None:
        asked.append(name)
        with torch.device("meta"):
            image = timm.create_model(name, pretrained=False)
        inflate(image.state_dict(), model, name)

    monkeypatch.setattr("dtf.models.dual_resnet.load_image_weights", load)
    with torch.device("meta"):
        create_model("sifa_resnet50", 3, 8, deep_stem=deep_stem, pretrained=True)
    assert asked == ["resnet50s.gluon_in1k" if deep_stem else "resnet50.tv_in1k"]


@pytest.mark.parametrize("deep_stem", [False, True])
def test_image_weights_fill_both_branches(deep_stem: bool) -> None:
    torch.manual_seed(0)
    sizes = {"layers": SMALL["layers"], "channels": SMALL["widths"]}
    image = ResNet(Bottleneck, **sizes, num_classes=7, **({"stem_type": "deep"} if deep_stem else {}))
    model = create_model("sifa_resnet50", **SMALL, deep_stem=deep_stem)
    state = inflate(image.state_dict(), model, "an image network")
    missing, unexpected = model.backbone.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".sifa." in name or name.startswith("fc") for name in missing)
    kernel = image.layer4[1].conv2.weight
    assert torch.equal(model.backbone.layer4_dual[1].conv2.weight, kernel)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, kernel)
    stem = model.backbone.get_parameter(model.stem_weight).unflatten(1, (3, 4))
    assert torch.equal(stem[:, :, 2], image.get_parameter(model.stem_weight))
    assert not stem[:, :, [0, 1, 3]].any()
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2e-5 if deep_stem else 1e-5}
