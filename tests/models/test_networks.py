"""Every network of our own: construction, forward and backward, sizes, stored parameter counts."""

from __future__ import annotations

import json

import pytest
import torch
from pocket import TADAFORMER, VIT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dtf.layers import DTFBlock, temporal_layers
from dtf.models import create_model, list_models, register_model
from dtf.models.heads import per_head
from dtf.models.registry import architecture
from dtf.models.resnet import RESNET
from dtf.models.stems import Tubelets

# Those of PyTorchVideo have their tests in test_pytorchvideo.py.
OWN = [name for name in list_models() if not name.startswith("ptv_")]

# A small form of each family; what makes a name that name (block type, filters, stem) is not touched.
SMALL = {
    "resnet": {"layers": [1, 1, 1, 2], "widths": [8, 8, 16, 16]},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "image_size": 32, "window_size": 4},
    "convnextv2": {"depths": [1, 1, 1, 2], "widths": [8, 8, 16, 16], "head_dim": 2},
    "convnext": {"depths": [1, 1, 1, 2], "widths": [8, 8, 16, 16]},
    "former": TADAFORMER,
    "vit": VIT,
    "tiny": {},
}

# Parameters at 400 classes, 16 frames. Those of dtf_resnet50, c2d_resnet50 and c2d_swin_small stand with
# the golden logits; the others are ours, kept to notice a change.
PARAMETERS = {
    "c2d_convnext_base": 87_988_752,
    "c2d_convnext_small": 49_771_504,
    "c2d_convnext_tiny": 28_136_944,
    "c2d_resnet101": 43_347_984,
    "c2d_resnet18": 11_409_936,
    "c2d_resnet50": 24_355_856,
    "c2d_swin_base": 87_171_400,
    "c2d_swin_large": 195_637_540,
    "c2d_swin_small": 49_158_490,
    "c2d_swin_tiny": 27_840_586,
    "c2d_tiny": 359_904,
    "c2d_vit_base": 87_286_672,
    "c2d_vit_large": 304_794_000,
    "ddf_add_resnet101": 26_917_512,
    "ddf_add_resnet50": 15_614_348,
    "ddf_mul_resnet101": 26_917_512,
    "ddf_mul_resnet152": 36_233_500,
    "ddf_mul_resnet50": 15_614_348,
    "ddf_tiny": 563_234,
    "dtf_resnet101": 51_774_512,
    "dtf_resnet18": 16_343_696,
    "dtf_resnet50": 28_815_536,
    "dtf_swin_base": 103_164_808,
    "dtf_swin_large": 231_540_868,
    "dtf_swin_small": 58_175_242,
    "dtf_swin_tiny": 33_725_050,
    "dtf_tiny": 1_309_024,
    "sifa_resnet101": 63_554_272,
    "sifa_resnet50": 43_040_928,
    "sifa_swin_base": 94_509_128,
    "sifa_swin_large": 212_136_868,
    "sifa_swin_small": 53_288_602,
    "sifa_tiny": 710_432,
    "tada2d_resnet101": 49_279_200,
    "tada2d_resnet50": 27_485_472,
    "tada_tiny": 429_988,
    "tadaconvnextv2_base": 145_687_632,
    "tadaconvnextv2_small": 82_249_120,
    "tadaconvnextv2_tiny": 45_971_488,
    "tadaformer_base": 104_195_728,
    "tadaformer_large": 364_827_024,
}


def small(name: str, **more: object) -> nn.Module:
    sizes = next((SMALL[key] for key in SMALL if key in name), {})
    torch.manual_seed(0)
    # Of few channels a share predicts the filters: all, so that none of them is a ReLU that stands alone.
    share = {"se_ratio": 1.0} if "se_ratio" in architecture(name).defaults else {}
    arguments = {"num_classes": 5, "clip_length": 8, **sizes, **share, **more}
    return create_model(name, **arguments)


def drop_path(name: str, rate: float) -> dict[str, float]:
    """The argument of networks that drop paths."""
    return {"drop_path_rate": rate} if "drop_path_rate" in architecture(name).defaults else {}


def awaken(model: nn.Module) -> nn.Module:
    """Gives every temporal layer a response and every norm the statistics of a random video."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer in temporal_layers(model).values():
        for name, parameter in layer.named_parameters():
            if not parameter.any():
                # Offsets of many pixels would lead out of the frame.
                nn.init.normal_(parameter, std=0.02 if "offset" in name else 1.0)
    for norm in norms:
        norm.momentum = 1.0
        if norm.weight is not None and not norm.weight.any():
            nn.init.ones_(norm.weight)
    height, width = model.image_size or (32, 32)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        model.train()(torch.randn(2, 3, model.clip_length, height, width).to(dtype))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def test_names():
    sizes = ["tiny", "resnet18", "resnet50", "resnet101"]
    sizes += [f"swin_{size}" for size in ("tiny", "small", "base", "large")]
    assert {f"{kind}_{size}" for kind in ("c2d", "dtf") for size in sizes} <= set(OWN)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_every_name_has_a_stored_count():
    assert sorted(PARAMETERS) == OWN


@pytest.mark.parametrize(("clip_length", "millions"), [(16, 28.8), (32, 33.3), (64, 50.1)])
def test_published_sizes_of_dtf_resnet50(clip_length, millions):
    with torch.device("meta"):
        model = create_model("dtf_resnet50", clip_length=clip_length)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "clip_length", "millions"),
    [("small", 16, 58.18), ("base", 16, 103.16), ("base", 32, 119.3), ("base", 64, 179.2)],
)
def test_published_sizes_of_dtf_swin(name, clip_length, millions):
    with torch.device("meta"):
        model = create_model(f"dtf_swin_{name}", clip_length=clip_length)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.15
    )  # a difference of roundings


@pytest.mark.parametrize("name", OWN)
def test_forward_and_backward_reach_every_parameter(name):
    model = awaken(small(name, **drop_path(name, 0.0))).train()
    video = torch.randn(2, 3, 8, 32, 32)
    logits = model(video)
    assert {head.shape for head in per_head(logits)} == {(2, 5)}
    logits.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    family = architecture(name).family
    assert {layer.family for layer in temporal_layers(model).values()} == ({family.name} if family else set())


@pytest.mark.parametrize("name", OWN)
def test_a_fresh_network_has_no_unused_parameters(name):
    """DDP waits for a gradient of each parameter: zero will do (fresh DTF blocks), none at all will not."""
    model = small(name, **drop_path(name, 0.5)).train()
    model(torch.randn(2, 3, 8, 32, 32)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", OWN)
def test_arguments_are_plain_data_that_build_the_network_again(name):
    model = small(name).eval()
    arguments = json.loads(json.dumps(model.arguments))
    assert model.name == name
    again = create_model(model.name, **arguments).eval()
    again.load_state_dict(model.state_dict())
    video = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(again(video), model(video))
    assert again.arguments == model.arguments


@pytest.mark.parametrize("size", ["tiny", "resnet18", "resnet50", "swin_tiny"])
def test_a_fresh_network_computes_what_its_control_computes(size):
    filtered, control = small(f"dtf_{size}").eval(), small(f"c2d_{size}").eval()
    missing, unexpected = filtered.load_state_dict(control.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    video = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(filtered(video), control(video), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", ["tiny", "resnet18", "resnet50", "swin_tiny"])
def test_only_filters_see_the_order_of_the_steps(size):
    video = torch.randn(2, 3, 8, 32, 32)
    reversed_video = video.flip(2)
    for kind, blind in (("c2d", True), ("dtf", False)):
        model = awaken(small(f"{kind}_{size}", temporal_stride=1))
        same = torch.allclose(model(video), model(reversed_video), rtol=1e-4, atol=1e-5)
        assert same == blind, kind


@pytest.mark.parametrize(
    "name",
    [
        *("dtf_tiny", "dtf_resnet50", "dtf_swin_tiny", "ddf_tiny", "tada_tiny"),
        *("tadaconvnextv2_tiny", "tadaformer_base"),
        *("sifa_tiny", "sifa_resnet50", "sifa_swin_small"),
    ],
)
def test_a_video_alone_equals_the_video_in_a_batch_in_every_layout(name):
    model = awaken(small(name).double())
    video = torch.randn(3, 3, 8, 32, 32, dtype=torch.float64)
    together = model(video)
    for index in range(3):
        torch.testing.assert_close(model(video[index : index + 1]), together[index : index + 1])
    channels_last = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(model(channels_last), together)


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (5, 1), (12, 4), (4, 4)])
@pytest.mark.parametrize("name", ["dtf_tiny", "dtf_resnet50", "dtf_swin_tiny"])
def test_any_clip_length_and_stride(name, frames, stride):
    groups = {} if (frames // stride // 2 + 1) * 2 * 8 % 16 == 0 else {"filter_groups": 4}
    model = small(name, clip_length=frames, temporal_stride=stride, **groups).eval()
    assert model(torch.randn(1, 3, frames, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    "name",
    ["dtf_tiny", "dtf_resnet50", "ddf_tiny", "ddf_add_resnet50", "sifa_resnet50", "tada2d_resnet50"],
)
def test_resnets_take_any_frame_size(name):
    model = small(name).eval()
    assert model(torch.randn(1, 3, 8, 33, 51)).shape == (1, 5)


@pytest.mark.parametrize("image_size", [64, [36, 60], [224, 224], 32])
def test_swin_takes_maps_that_windows_do_not_divide(image_size):
    model = small("dtf_swin_tiny", image_size=image_size, window_size=7, clip_length=4).eval()
    sides = [image_size] * 2 if isinstance(image_size, int) else image_size
    assert model(torch.randn(1, 3, 4, *sides)).shape == (1, 5)


def test_swin_has_filters_exactly_where_windows_are_not_shifted():
    model = small("dtf_swin_tiny", image_size=32, window_size=4)  # maps of 8 x 8, then 4 x 4 tokens
    places = [n.removesuffix(".dtf") for n, m in model.named_modules() if isinstance(m, DTFBlock)]
    # The second stage is no larger than the window: no shift, filters in both blocks.
    assert places == [f"backbone.layers.{p}" for p in ("0.blocks.0", "1.blocks.0", "1.blocks.1")]


def test_drop_path_and_dropout_reach_their_layers():
    model = small("dtf_resnet50", drop_path_rate=0.5, dropout=0.25)
    assert model.dropout == 0.25
    assert model.backbone.layer4[1].drop_path.drop_prob == 0.5
    model = small("dtf_swin_tiny", drop_path_rate=0.5, dropout=0.25)
    rates = [block.drop_path1.drop_prob for stage in model.backbone.layers for block in stage.blocks if
             hasattr(block.drop_path1, "drop_prob")]  # fmt: skip
    assert rates == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert model.backbone.head.drop.p == 0.25


def test_a_step_of_training_lowers_the_loss():
    torch.manual_seed(0)
    model = create_model("dtf_tiny", num_classes=2, clip_length=8)
    video = torch.rand(4, 3, 8, 32, 32)
    video[2:] = video[:2].flip(2)  # classes that only the order of frames tells apart
    label = torch.tensor([0, 0, 1, 1])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(video), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "name",
    [
        *("dtf_tiny", "dtf_swin_tiny", "ddf_tiny", "sifa_tiny", "sifa_resnet50", "sifa_swin_small"),
        *("tada_tiny", "tadaconvnextv2_tiny", "tadaformer_base"),
    ],
)
def test_networks_run_under_autocast(name):
    model = awaken(small(name)).train()
    video = torch.randn(2, 3, 8, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(video).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("dtf_resnet51"), "unknown model 'dtf_resnet51'; did you mean 'dtf_resnet50'"),
        (lambda: create_model("dtf_tiny", layer=[1, 1]), "unknown argument 'layer'; did you mean 'layers'"),
        (lambda: create_model("c2d_tiny", kernel_size=5), "unknown argument 'kernel_size'"),
        (lambda: create_model("dtf_resnet50", stem_width=16), "unknown argument 'stem_width'"),
        (lambda: create_model("dtf_resnet50", clip_length=18), "multiple of temporal_stride, got 18 and 4"),
        (lambda: create_model("dtf_tiny", num_classes=0), "num_classes must be a positive integer, got 0"),
        (
            lambda: create_model("dtf_tiny", clip_length=True),
            "clip_length must be a positive integer, got True",
        ),
        (lambda: create_model("dtf_tiny", dropout=1.5), "dropout must be a number from 0 up to .* got 1.5"),
        (lambda: create_model("dtf_tiny", layers=2), r"layers must be a list of positive integers .* got 2"),
        (lambda: create_model("dtf_tiny", layers=[1, 1]), "one entry for each of the 4 stages"),
        (lambda: create_model("dtf_tiny", layers={"a": 1}), "must be plain data"),
        (lambda: create_model("dtf_tiny", stem_width=7), "stem_width must be an even"),
        (lambda: create_model("dtf_tiny", kernel_size=4), "kernel_size must be odd"),
        (lambda: create_model("dtf_tiny", filter_groups=7), "filter_groups must divide"),
        (lambda: create_model("dtf_swin_tiny", image_size=30), "multiples of 4 pixels, got 30"),
        (lambda: create_model("dtf_swin_tiny", image_size=[1, 2, 3]), "positive integer or two"),
        (
            lambda: create_model("dtf_swin_tiny", num_heads=[3, 6, 12, 7]),
            "stage 3 has 768 channels and 7 heads",
        ),
        (lambda: create_model("dtf_swin_tiny", depths=[2, 2]), "one entry per stage"),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dtf_tiny", (1, 3, 7, 32, 32), "built for clips of 8 frames, got 7"),
        ("dtf_tiny", (1, 3, 8, 0, 32), "video must have pixels, got"),
        ("dtf_tiny", (3, 8, 32, 32), r"must be \(B, 3, T, H, W\)"),
        ("dtf_tiny", (1, 1, 8, 32, 32), r"must be \(B, 3, T, H, W\)"),
        ("dtf_swin_tiny", (1, 3, 8, 32, 36), r"frames of 32 x 32 px, got 32 x 36.*image_size=\[32, 36\]"),
    ],
)
def test_wrong_videos_get_a_clear_error(name, shape, message):
    with pytest.raises(ValueError, match=message):
        small(name)(torch.zeros(shape))


def test_a_video_in_uint8_gets_a_clear_error():
    with pytest.raises(ValueError, match=r"floating-point values, got torch\.uint8"):
        small("dtf_tiny")(torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'dtf_tiny' is already registered"):
        register_model("dtf_tiny", RESNET)


def test_the_backend_of_a_network_is_chosen_and_not_stored():
    model = small("dtf_tiny", backend="reference")
    assert {layer.backend for layer in temporal_layers(model).values()} == {"reference"}
    assert "backend" not in model.arguments
    again = create_model("dtf_tiny", **model.arguments).eval()
    again.load_state_dict(model.state_dict())
    video = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(again(video), model.eval()(video))
    with pytest.raises(ValueError, match="backend must be one of auto, reference, torch, cupy, got 'cuda'"):
        small("dtf_tiny", backend="cuda")


def test_all_faults_of_the_arguments_are_told_at_once():
    with pytest.raises(ValueError, match=r"num_classes .* got 0; dropout .* got 2; kernel_size .* got 0"):
        create_model("dtf_tiny", num_classes=0, dropout=2, kernel_size=0)


@pytest.mark.parametrize("name", ["c2d_tiny", "ddf_tiny", "dtf_tiny", "sifa_tiny", "tada_tiny"])
def test_an_image_is_a_clip_of_one_frame(name):
    model = small(
        name, clip_length=1, temporal_stride=1, **({"filter_groups": 2} if name == "dtf_tiny" else {})
    )
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(image), model(image.unsqueeze(2)))


def test_steps_of_frames_that_overlap_are_the_sums_of_a_convolution_over_time():
    video = torch.randn(2, 3, 8, 9, 7)
    conv = nn.Conv3d(3, 4, (3, 2, 2), (2, 1, 1), (1, 0, 0), bias=False)
    stem = Tubelets(kernel=3, stride=2, padding=1)
    expected = conv(video)
    assert stem.num_steps(8) == expected.shape[2] == 4
    frames = nn.functional.conv2d(stem.fold(video), conv.weight.flatten(1, 2))
    torch.testing.assert_close(frames.unflatten(0, (2, 4)).transpose(1, 2), expected)
    image = torch.randn(4, 3, 2, 2)
    inflated = stem.inflate(image).unflatten(1, (3, 3))
    assert torch.equal(inflated[:, :, 1], image)
    assert not inflated[:, :, [0, 2]].any()
