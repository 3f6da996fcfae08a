"""TAdaConvNeXtV2 and TAdaFormer: golden blocks and logits through the conversion, image weights, places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_files
import pytest
import timm
import torch
from golden_files import original_state, stored
from pocket import TADAFORMER, VIT
from quick import quick
from torch import Tensor, nn

from dtf.layers import layer_maps, temporal_layers
from dtf.layers.ddf import DDF, DDFOptions
from dtf.layers.dtf import DTF, DTFOptions
from dtf.layers.sifa import SIFA, SIFAOptions
from dtf.layers.tada import TADA, TAdaOptions
from dtf.layers.temporal import Place, Temporal
from dtf.models import VideoNetwork, convert_original_state_dict, create_model
from dtf.models.convnext import ConvNeXtOptions, TemporalConvNeXtBlock, build_convnext
from dtf.models.registry import architecture
from dtf.models.stems import overlapping
from dtf.models.vit import TemporalViTBlock, ViTOptions, build_vit
from dtf.models.weights.convert import CONVERSIONS
from dtf.models.weights.convert import tada as conversion
from dtf.models.weights.images import inflate

GOLDEN = golden_files.GOLDEN / "tada"
CONVNEXT = {"depths": [1, 2, 1, 1], "widths": [8, 8, 16, 16], "head_dim": 2, "num_classes": 3}


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, name: str, least: float = 0) -> None:
    error = (ours - expected).abs().max().item()
    assert error <= tolerance * max(least, expected.abs().max().item()), f"{name} is {error:.1e} away"


FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "model_tadaconvnextv2_tiny_nc400_1x3x16x64x64": ("tadaconvnextv2_tiny", {}),
    "model_tadaconvnextv2_base_nc10_1x3x8x64x64": ("tadaconvnextv2_base", {}),
    "model_tadaformer_b16_k400_res64_nc400_1x3x16x64x64": ("tadaformer_base", {"image_size": 64}),
    "model_tadaformer_b16_ssv2_res64_nc174_1x3x16x64x64": (
        "tadaformer_base",
        {"image_size": 64, "over_time": True, "double": True},
    ),
}
TAPS = {"backbone.downsample_layers.0": "stem", "backbone.stages.0.0.dwconv": "stages.0.blocks.0.conv_dw"}
TAPS |= {f"backbone.stages.{n}": f"stages.{n}" for n in range(4)}


@pytest.mark.parametrize("file", quick(FILES, "model_tadaconvnextv2_tiny_nc400_1x3x16x64x64"))
def test_golden_networks(file: str) -> None:
    values, meta = stored(GOLDEN / f"{file}.npz")
    name, arguments = FILES[file]
    with torch.device("meta"):
        model = create_model(
            name, values["logits"].shape[1], clip_length=meta["input_shape"][2], **arguments
        ).eval()
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    entries = original_state(GOLDEN / f"{file}.state.json")
    state, report = convert_original_state_dict(entries, model)
    assert not report.dead
    assert len(report.converted) == len(entries)
    model.load_state_dict(state, strict=True, assign=True)
    model.double()
    taps: dict[str, Tensor] = {}
    for theirs, ours in TAPS.items() if "convnext" in name else ():
        module = model.backbone.get_submodule(ours)
        module.register_forward_hook(lambda m, args, out, theirs=theirs: taps.update({theirs: out}))
    generator = torch.Generator().manual_seed(meta["input_seed"])
    x = torch.randn(meta["input_shape"], generator=generator).double()
    with torch.inference_mode():
        assert_close(model(x), values["logits"], 1e-7, "logits")
        for theirs, tap in taps.items():
            clip = tap if tap.dim() == 5 else model.unfold(tap)
            flat = clip.contiguous().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64]
            torch.testing.assert_close(
                sample, values[f"tap_{theirs}_sample"], rtol=1e-7, atol=1e-9, msg=theirs
            )
        assert_close(model.float()(x.float()).double(), values["logits"], 1e-4, "float32")


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("tadaconvnextv2_block_*.npz")), ids=lambda path: path.stem
)
def test_golden_convnext_blocks(path: Path) -> None:
    values, meta = stored(path)
    channels, steps = meta["dim"], values["x"].shape[2]
    options = TAdaOptions("attention", meta["route_func_r"], tuple(meta["route_func_k"]), meta["head_dim"])
    block = TemporalConvNeXtBlock(channels, "quick_gelu", 0.0, steps)
    here = (channels, steps, 0, 0)
    block.fill(
        Temporal(TADA, options),
        Place("convolution", *here, replaces="conv_dw", convolution=block.conv_dw),
        Place("norm", *here, replaces="norm", norm=block.norm),
    )
    block.double().eval()
    ours = {
        name: translated(f"stages.0.0.{name[6:]}").removeprefix("stages.0.blocks.0.")
        for name in values
        if name.startswith("param_")
    }
    block.load_state_dict({ours[name]: values[name] for name in ours}, strict=True)
    x = values["x"].requires_grad_()
    y = block(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, steps)).transpose(1, 2)
    assert_close(y.detach(), values["out"], 1e-9, "out")
    y.backward(values["grad_out"])
    assert_close(x.grad, values["grad_x"], 1e-9, "grad_x")
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    assert set(gradients) == set(ours.values())
    for name, our in ours.items():
        assert_close(gradients[our], values[f"grad{name}"], 1e-9, name)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("tadaformer_block_*.npz")), ids=lambda path: path.stem)
def test_golden_vit_blocks(path: Path) -> None:
    values, meta = stored(path)
    steps, channels = meta["num_frames"], meta["dim"]
    side = round((len(values["x"]) - 1) ** 0.5)
    options = TAdaOptions(
        *("attention", meta["route_func_r"], tuple(meta["route_func_k"]), meta["head_dim"]),
        over_time=meta["temp_enhance"],
        double=meta["double_tada"],
    )
    block = TemporalViTBlock(
        *(channels, meta["num_heads"]),
        qkv_bias=True,
        act_layer=timm.layers.QuickGELU,
        norm_layer=nn.LayerNorm,
        grid=(side, side),
        num_steps=steps,
        drop_path=0.0,
    )
    here = (channels, steps, 0, 0)
    block.fill(
        Temporal(TADA, options),
        Place("before_attention", *here),
        Place("after_attention", *here, suffix="2"),
    )
    block.double().eval()
    entries = {
        name: value.double() for name, value in original_state(path.with_suffix(".state.json")).items()
    }
    ours = {name: translated(f"layers.0.{name}").removeprefix("blocks.0.") for name in entries}
    wanted = block.state_dict()
    state = {ours[name]: CONVERSIONS["tada"].reshape(entries[name], wanted[ours[name]]) for name in entries}
    block.load_state_dict(state, strict=True)
    x = values["x"].requires_grad_()
    y = block(x.transpose(0, 1)).transpose(0, 1)
    assert_close(y.detach(), values["out"], 1e-9, "out")
    y.backward(values["grad_out"])
    assert_close(x.grad, values["grad_x"], 1e-9, "grad_x")
    for name, our in ours.items():
        if f"gradnorm_{name}" not in values:
            continue
        grad = block.get_parameter(our).grad.flatten()
        assert_close(grad.norm(), values[f"gradnorm_{name}"], 1e-9, name, least=1)
        sample = grad[:: max(1, grad.numel() // 16)][:16]
        assert_close(sample, values[f"gradsample_{name}"], 1e-9, name, least=1)


def translated(name: str) -> str:
    """Our name within a backbone of the original's."""
    network = VideoNetwork.__new__(VideoNetwork)
    return CONVERSIONS["tada"].translate(f"backbone.{name}", network).removeprefix("backbone.")


def convnext(name: str = "tadaconvnextv2_tiny", **more: object) -> VideoNetwork:
    torch.manual_seed(0)
    arguments = {k: v for k, v in CONVNEXT.items() if k != "head_dim" or name.startswith("tada")}
    return create_model(name, **{"clip_length": 8, **arguments, **more}).eval()


def vit(name: str = "tadaformer_base", **more: object) -> VideoNetwork:
    torch.manual_seed(0)
    arguments = TADAFORMER if name.startswith("tada") else VIT
    return create_model(name, **{"clip_length": 8, "num_classes": 3, **arguments, **more}).eval()


@pytest.mark.parametrize("kind", ["convnext", "clip"])
def test_weights_of_image_networks_arrive_as_in_the_original(kind: str) -> None:
    """The stored conversion of single entries and ours of the same ones meet in the same places."""
    values, _ = stored(GOLDEN / f"weight_conversion_{kind}.npz")
    sizes = {"image_size": 8, "patch_size": 4, "embed_dim": 4, "num_heads": 1, "head_dim": 1}
    model = convnext() if kind == "convnext" else vit(**sizes)
    image = {name.removeprefix("in_"): value for name, value in values.items() if name.startswith("in_")}
    if kind == "convnext":  # what has two axes is taken for a matrix of this network
        sizes = {"stages.0.0.pwconv1.weight": (32, 8)}
        image = {
            name: value.new_zeros(sizes[name]) if name in sizes else value for name, value in image.items()
        }
    named = model.image_state(image)
    stem = model.stem_weight
    named[stem] = model.stem.inflate(named[stem])
    layers = temporal_layers(model.backbone)
    for prefix in {key.rpartition(".")[0] for key in named}:
        if prefix in layers:
            own = {
                k.removeprefix(f"{prefix}."): named.pop(k) for k in list(named) if k.startswith(f"{prefix}.")
            }
            named |= {f"{prefix}.{k}": v for k, v in layers[prefix].from_image(own).items()}
    for name, value in values.items():
        if name.startswith("out_") and name != "out_backbone.proj" and "pwconv" not in name:
            ours = translated(name.removeprefix("out_backbone."))
            assert torch.equal(conversion._reshape(value, named[ours]), named[ours]), name


IMAGES = {
    "tadaconvnextv2_tiny": lambda: timm.models.convnext.ConvNeXt(
        depths=(1, 2, 1, 1), dims=(8, 8, 16, 16), act_layer="quick_gelu", num_classes=5, ls_init_value=1.0
    ),
    "tadaformer_base": lambda: timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        pre_norm=True,
        act_layer="quick_gelu",
        norm_layer=nn.LayerNorm,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_weights_make_a_network_that_sees_frame_by_frame(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    image = IMAGES[name]().eval()
    torch.save(image.state_dict(), tmp_path / "image.pth")
    make = convnext if "convnext" in name else vit
    model = make(name, pretrained=str(tmp_path / "image.pth"))
    video = torch.randn(2, 3, 8, 32, 32)
    maps = model.features(model.stem.fold(video)).unflatten(0, (2, 4))
    for step in range(4):
        # The middle of three frames, of which the first is ahead of the clip.
        expected = image.forward_features(video[:, :, 2 * step])
        ours = maps[:, step] if "convnext" in name else image.norm(maps[:, step])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(video[:1]), model(video[:1]))


@pytest.mark.parametrize("name", ["tadaconvnextv2_tiny", "tadaformer_base"])
def test_published_image_weights_have_the_names_of_the_backbone(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        state = timm.create_model(architecture(name).published).state_dict()
        taken = inflate(state, model, "timm's")  # strict
    assert taken[model.stem_weight].shape[1] == 9


@pytest.mark.parametrize("make", [convnext, vit])
def test_calibration_sees_the_order_of_frames(make) -> None:
    model = make(temporal_stride=1, dropout=0.0).double()
    video = torch.randn(1, 3, 8, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(video.flip(2)), model(video), rtol=1e-9, atol=1e-12)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert (model(video.flip(2)) - model(video)).abs().max() > 1e-6


def test_a_fresh_network_is_drawn_as_the_published_one() -> None:
    networks = (convnext(widths=[64, 64, 64, 64], head_dim=16), vit(embed_dim=64, head_dim=16, double=True))
    for model in networks:
        zero = {"rf.b", "rf.b_bias", "pool_norm", "tada_proj", "bn_b"}
        for name, module in model.named_modules():
            silent = getattr(module, "skip_init", False)
            assert silent == any(name.endswith(f".{end}") for end in zero), name
            for key, parameter in module.named_parameters(recurse=False):
                if silent:
                    assert not parameter.any(), (name, key)
                elif key == "weight" and "patch_embed" not in name and parameter.numel() > 3000:
                    assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert networks[0].backbone.stages[0].blocks[0].gamma.unique().item() == pytest.approx(1e-6)


@pytest.mark.parametrize("make", [convnext, vit])
def test_paths_are_dropped_for_whole_clips(make) -> None:
    model = make(drop_path_rate=0.5, dropout=0.0).train()
    steps = model.num_steps
    paths = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    assert {m.drop_prob for m in paths} >= {0.0, 0.5}
    last = [m for m in paths if m.drop_prob == 0.5]
    for path in last:
        ones = path(torch.ones(64 * path.num_steps, 2, 1))
        assert path.num_steps in (1, steps)
        clips = ones.view(64, -1)
        assert (clips == clips[:, :1]).all()
        assert set(clips[:, 0].tolist()) == {0.0, 2.0}


def test_tubelets_overlap() -> None:
    assert [overlapping(16, 2).num_steps(16), overlapping(1, 1).num_steps(1)] == [8, 1]
    assert (overlapping(16, 2).kernel, overlapping(16, 2).padding) == (3, 1)
    assert overlapping(8, 1).kernel == 1
    with pytest.raises(ValueError, match="multiple of temporal_stride, got 5 and 2"):
        overlapping(5, 2)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (convnext, {"depths": [1, 1]}, "one entry for each of the 4 stages"),
        (convnext, {"activation": "relu"}, "activation must be one of gelu, quick_gelu, got 'relu'"),
        (convnext, {"head_dim": 3}, "head_dim must divide"),
        (vit, {"image_size": 36}, "multiples of patch_size 8, got 36"),
        (vit, {"num_heads": 3}, "num_heads must divide embed_dim, got 3 and 16"),
    ],
)
def test_wrong_arguments_get_a_clear_error(make, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_oblong_frames_and_images() -> None:
    assert vit(image_size=[32, 48])(torch.randn(1, 3, 8, 32, 48)).shape == (1, 3)
    assert convnext()(torch.randn(1, 3, 8, 40, 66)).shape == (1, 3)
    with pytest.raises(ValueError, match="frames must have at least 32 x 32 px, got 40 x 31"):
        convnext()(torch.randn(1, 3, 8, 40, 31))
    for make in (convnext, vit):
        picture = make(clip_length=1, temporal_stride=1)
        assert picture(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_every_calibration_explains_itself() -> None:
    maps = layer_maps(convnext(), torch.randn(1, 3, 8, 64, 64))
    assert list(maps) == [f"backbone.stages.{stage}.blocks.{index}.conv_dw" for stage, index in
                          ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0))]  # fmt: skip
    assert maps["backbone.stages.1.blocks.0.conv_dw"].values.shape == (1, 4, 8, 8)
    maps = layer_maps(vit(double=True), torch.randn(1, 3, 8, 32, 32))
    assert [f"backbone.blocks.{n}.tada{i}" for n in range(2) for i in ("", "2")] == list(maps)
    assert maps["backbone.blocks.0.tada"].values.shape == (1, 4, 4, 4)


OTHERS = {
    "dtf": Temporal(DTF, DTFOptions(filter_groups=4)),
    "sifa": Temporal(SIFA, SIFAOptions(every=1, first_stage=0)),
    "ddf": Temporal(DDF, DDFOptions(se_ratio=1.0)),
    "tada": Temporal(TADA, TAdaOptions(routing_ratio=2, head_dim=2)),
}


@pytest.mark.parametrize(("backbone", "family"), [(b, f) for b in ("convnext", "vit") for f in OTHERS])
def test_other_families_stand_in_these_backbones(backbone: str, family: str) -> None:
    torch.manual_seed(0)
    if backbone == "convnext":
        options = ConvNeXtOptions(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8))
        model: VideoNetwork = build_convnext(options, 3, 8, OTHERS[family])
    else:
        model = build_vit(ViTOptions(**VIT), 3, 8, OTHERS[family])
    layers = temporal_layers(model)
    # Attention is their alone who add to it; pixels of a ConvNeXt, theirs who stand at convolutions.
    assert bool(layers) == ((backbone, family) not in {("convnext", "sifa"), ("vit", "ddf")})
    model(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_positions_of_another_size_are_resized() -> None:
    table = torch.randn(10, 4)
    here = conversion._reshape(table, torch.empty(1, 26, 4))
    assert here.shape == (1, 26, 4)
    assert torch.equal(here[0, 0], table[0])
    assert torch.equal(conversion._reshape(table, torch.empty(1, 10, 4))[0], table)
    assert conversion._reshape(table, torch.empty(1, 9, 4)) is None
