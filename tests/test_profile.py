"""Costs of networks: a hand count of the DTF block, another counter, published figures, the table."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from engine import REPOSITORY, assert_one_line_error, documented
from quick import quick
from torch import nn

from dtf.models import DTFBlock
from dtf.models.cost import build, measure_cost, measure_speed, models_table
from dtf.ops import temporal_aggregation, temporal_correlation
from dtf.profile import main, parse


def hand_count(channels: int, frames: int, window: int, groups: int, pixels: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a DTF block in evaluation, per clip, from its description."""
    frequencies, ends = frames // 2 + 1, 2 - frames % 2
    between = frequencies - ends
    outputs = channels * frequencies * 2 // groups
    inputs = channels + window**2
    correlation = window**2 * channels * frames
    aggregation = window**2 * channels * (frames - 1)
    prediction = inputs * frames * outputs
    transforms = 2 * frames * frames * channels
    # A complex entry takes 4 products. The ends have real parts alone behind the inverse, and for even G (the
    # filter is a real number times 1 + i) in front of the mix as well.
    mix = channels**2 * (4 * between + (1 if groups % 2 == 0 else 2) * ends)
    parameters = inputs * frames * outputs + 2 * channels**2 + 2 * channels
    return parameters, pixels * (correlation + aggregation + prediction + transforms + mix)


@pytest.mark.parametrize(
    ("channels", "frames", "window", "groups"),
    [(64, 4, 3, 16), (8, 5, 3, 4), (6, 6, 5, 3), (8, 1, 1, 2), (4, 2, 3, 1)],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_block_counted_by_hand(channels, frames, window, groups, device):
    with torch.device(device):
        block = DTFBlock(channels, frames, window, groups).eval()
        cost = measure_cost(block, torch.ones(2, channels, frames, 5, 7))
    parameters, macs = hand_count(channels, frames, window, groups, 5 * 7)
    assert (cost.parameters, cost.macs) == (parameters, 2 * macs)


def test_single_operators():
    x, attention = torch.ones(2, 3, 4, 5, 6, device="meta"), torch.ones(2, 9, 4, 5, 6, device="meta")

    class Operators(nn.Module):
        def forward(self, x):
            return temporal_correlation(x, 5), temporal_aggregation(x, attention, 3)

    cost = measure_cost(Operators(), x)
    assert cost.macs == (25 + 9) * x.numel()
    assert cost.activations == 2 * 25 * 4 * 5 * 6 + x.numel()


@pytest.mark.parametrize("name", ["c2d_resnet50", "c2d_swin_tiny"])
def test_another_counter_agrees(name):
    """fvcore counts multiply-adds, from a trace instead of from operators."""
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    small = {"clip_length": 4, "image_size": 64, "num_classes": 10}
    network, video = build(name, device="cpu", **small)
    cost = measure_cost(network, video)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flops, activations = (
            kind(network, video).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            for kind in (FlopCountAnalysis, ActivationCountAnalysis)
        )
        assert cost.activations == activations.total()
        by_operator = flops.by_operator()
    # It counts some of the element-wise work as well.
    assert cost.macs == sum(by_operator[kind] for kind in ("conv", "linear", "matmul"))


_SSV2 = {"num_classes": 174, "over_time": True, "double": True}


@pytest.mark.parametrize(
    ("name", "arguments", "parameters", "gflops"),
    quick(
        [
            # mmaction2's model zoo: C2D 8x8; 8 and 25 frames of an image backbone.
            ("c2d_resnet50", {"clip_length": 8, "temporal_stride": 1}, 24.3, 33),
            ("c2d_resnet101", {"clip_length": 8, "temporal_stride": 1}, 43.3, 63),
            ("c2d_swin_base", {"clip_length": 25, "temporal_stride": 1}, 87.2, 386.7),
            # The released code of the paper, live parameters.
            ("dtf_resnet50", {}, 28.8, None),
            ("dtf_resnet50", {"clip_length": 32}, 33.3, None),
            ("dtf_resnet50", {"clip_length": 64}, 50.1, None),
            ("dtf_resnet101", {"clip_length": 64}, 92.1, None),
            ("dtf_swin_base", {}, 103.2, None),
            ("dtf_swin_base", {"clip_length": 64}, 179.2, None),
            # TAdaConv's model zoo, at the sizes of training and of testing.
            ("tada2d_resnet50", {"clip_length": 8}, 27.5, 33.0),
            ("tada2d_resnet50", {"clip_length": 8, "image_size": 256}, 27.5, 43.1),
            ("tada2d_resnet50", {}, 27.5, 66.0),
            ("tadaconvnextv2_tiny", {}, 46.0, 36.0),
            ("tadaconvnextv2_tiny", {"image_size": 256}, 46.0, 47),
            ("tadaconvnextv2_tiny", {"image_size": 256, "clip_length": 32}, 46.0, 94),
            ("tadaconvnextv2_small", {}, 82.2, 70.0),
            ("tadaconvnextv2_small", {"image_size": 256}, 82.2, 91),
            ("tadaconvnextv2_base", {}, 145.7, 123.6),
            ("tadaconvnextv2_base", {"image_size": 256}, 145.7, 162),
            ("tadaformer_base", {}, 104.2, 153.6),
            ("tadaformer_base", _SSV2, 135.1, 187.0),
            ("tadaformer_large", {}, 364.8, 702.6),
            ("tadaformer_large", _SSV2, 475.0, 857.7),
        ],
        ("dtf_resnet50", {}, 28.8, None),
    ),
)
def test_published_figures(name, arguments, parameters, gflops):
    cost = measure_cost(*build(name, **arguments))
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.06, rel=1e-3)
    if gflops is not None:
        assert cost.macs / 1e9 == pytest.approx(gflops, rel=0.01)


def test_stages_sum_to_the_whole():
    for name in ("dtf_resnet18", "dtf_swin_tiny"):
        cost = measure_cost(*build(name))
        assert len(cost.parts) >= 6
        for field in ("parameters", "macs", "activations"):
            assert sum(getattr(part, field) for part in cost.parts) == getattr(cost, field) > 0
    names = [part.name for part in cost.parts]
    assert {"backbone.patch_embed", "backbone.layers.0", "backbone.layers.3", "backbone.head"} <= set(names)


def test_what_lies_outside_the_stages_is_shown():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 5)])
            self.weight = nn.Parameter(torch.ones(5, 2))

        def forward(self, x):
            return self.inner[1](self.inner[0](x)) @ self.weight

    cost = measure_cost(Outside(), torch.ones(7, 3))
    assert [(part.name, part.parameters, part.macs, part.activations) for part in cost.parts] == [
        ("inner", 20 + 30, 0, 0),
        ("(itself)", 10, 7 * 10 + 7 * 40, 7 * 12),
    ]


@pytest.mark.slow
def test_table_in_the_documents():
    table = models_table()
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    found = {}
    for page in pages:
        for shown in re.findall(r"<!-- models -->\n(.*?)\n<!-- /models -->", page.read_text(), flags=re.S):
            found[page.name] = shown.strip()
    assert "models.md" in found
    stale = [name for name, shown in found.items() if shown != table]
    assert not stale, f"python -m dtf.profile all prints another table than {stale}"


def test_documented_commands(capsys, monkeypatch):
    monkeypatch.setattr("dtf.profile.MEASURE_SECONDS", 0)
    page = "explain.md"
    command = documented(page, "dtf.profile dtf_resnet50")
    assert command[:2] == ["-m", "dtf.profile"]
    assert main([*command[2:], "image_size=32", "layers=[1,1,1,1]", "device=none"]) == 0
    out = capsys.readouterr().out
    assert "dtf_resnet50: one clip of 16 frames of 32 x 32 px" in out
    assert "backbone.layer4" in out
    assert "clips/s" not in out
    assert documented(page, "dtf.profile all")[2:] == ["all"]
    command = documented(page, "device=cpu")
    assert main([*command[2:], "widths=[8,8,8,8]"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"(inference|forward and backward): [\d.]+ clips/s", out)) == 2


def test_networks_in_pocket_size_are_measured_at_their_own_size():
    assert build("dtf_tiny")[1].shape == (1, 3, 8, 64, 64)
    assert build("dtf_tiny", clip_length=4)[1].shape == (1, 3, 4, 64, 64)
    assert build("dtf_swin_tiny")[1].shape == (1, 3, 16, 224, 224)


def test_image_networks_are_measured_at_pictures(capsys):
    assert main(["ddf_mul_resnet50", "layers=[1,1,1,1]", "image_size=32", "device=none"]) == 0
    assert "ddf_mul_resnet50: one picture of 32 x 32 px, 1000 classes" in capsys.readouterr().out
    assert build("ddf_mul_resnet50", clip_length=8)[1].shape[2] == 8


def test_speed_is_measured_in_the_mode_asked_for():
    modes = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, video):
            modes.append((self.training, torch.is_grad_enabled()))
            return self.linear(video.mean(dim=(2, 3, 4)))

    network, video = Network(), torch.ones(2, 3, 4, 5, 5)
    speed = measure_speed(network, video, seconds=0)
    assert speed.clips_per_second > 0
    assert speed.peak_bytes is None
    assert measure_speed(network, video, training=True, seconds=0).clips_per_second > 0
    assert modes == [(False, False)] * 3 + [(True, True)] * 3
    assert network.linear.weight.grad is None
    two_heads = nn.Sequential(network, nn.Unflatten(1, (2, -1)))
    assert measure_speed(two_heads, video, training=True, seconds=0).clips_per_second > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], None),
        (["dtf_resnet51"], "unknown model 'dtf_resnet51'; did you mean"),
        (["dtf_tiny", "clip_lenght=8"], "unknown argument 'clip_lenght'; did you mean 'clip_length'"),
        (["dtf_tiny", "clip_length=eight"], "neither a number nor a list"),
        (["dtf_tiny", "image_size=0"], "image_size must be a number of pixels"),
        (["dtf_tiny", "batch_size=1.5"], "batch_size a number of clips"),
        (["dtf_tiny", "device=tpu"], "device must be auto, cpu, cuda or cuda:N"),
        (["dtf_tiny", "--device"], "there is no option --device"),
        (["dtf_tiny", "c2d_tiny"], "give one network"),
        (["all", "clip_length=8"], "takes no settings"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys):
    if message is None:
        assert main(arguments) == 2
        return
    assert_one_line_error(main, arguments, message, capsys)


def test_settings_are_plain_data():
    assert parse(["dtf_tiny", "layers=[1,2]", "dropout=0.5", "device=cpu"]) == (
        "dtf_tiny",
        "cpu",
        {"layers": [1, 2], "dropout": 0.5},
    )
    with pytest.raises(ValueError, match="neither a number"):
        parse(["dtf_tiny", "layers=__import__('os')"])
