"""Golden logits of whole networks, through the conversion of the original's state dicts; its refusals."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from quick import quick
from torch import Tensor

from dtf.models import DTFBlock, VideoNetwork, convert_original_state_dict, create_model

GOLDEN = Path(__file__).parents[1] / "golden" / "dtf"
SWIN = {"embed_dim": 32, "num_heads": [2, 4, 8, 16]}
# File -> our name and arguments, and how many entries of the original's state dict are dead.
NETWORKS = {
    "c2d_resnet50": ("c2d_resnet50", {}, 0),
    "c2d_swin_s": ("c2d_swin_small", {}, 35),
    "dtf_resnet50_16f": ("dtf_resnet50", {}, 16),
    "dtf_resnet_1111_16f": ("dtf_resnet50", {"layers": [1, 1, 1, 1], "num_classes": 7}, 4),
    "dtf_resnet_1111_32f": ("dtf_resnet50", {"layers": [1, 1, 1, 1], "num_classes": 7, "clip_length": 32}, 4),
    "dtf_swin_s_16f": ("dtf_swin_small", {}, 160),
    "dtf_swin_tiny_w2_16f": (
        "dtf_swin_tiny",
        {**SWIN, "image_size": 64, "window_size": 2, "depths": [2, 2, 4, 2], "num_classes": 7},
        62,
    ),
    "dtf_swin_tiny_w4_32f": (
        "dtf_swin_tiny",
        {
            **SWIN,
            "image_size": 128,
            "window_size": 4,
            "depths": [2, 2, 2, 2],
            "num_classes": 5,
            "clip_length": 32,
        },
        48,
    ),
}
SMALL = ["dtf_resnet_1111_16f", "dtf_swin_tiny_w2_16f"]


def seeded(name: str, shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def value(name: str, shape: list[int]) -> Tensor:
    """The golden networks' entry of that name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.75
    if name.endswith("weights_cor"):
        return torch.full(shape, 1 / shape[0], dtype=torch.float64)
    if name.endswith(".weight") and len(shape) == 1:
        return 0.5 + 0.05 * torch.randn(shape, generator=generator)
    if len(shape) < 2 or shape[0] == 1:
        return torch.randn(shape, generator=generator) * 0.05
    fan_in = torch.Size(shape).numel() / shape[0]
    return torch.randn(shape, generator=generator) * (0.7 / fan_in**0.5)


def load(file: str) -> tuple[dict, dict[str, Tensor], VideoNetwork]:
    """Returns the stored facts, the original's state dict and our network before conversion."""
    stored = json.loads((GOLDEN / f"model_{file}.json").read_text())
    state = {
        name: value(name, shape).double()
        if dtype.startswith("float")
        else torch.zeros(shape, dtype=torch.int64)
        for name, (shape, dtype) in stored["state_dict"].items()
    }
    name, arguments, _ = NETWORKS[file]
    return stored, state, create_model(name, **arguments)


def test_every_golden_network_is_here():
    assert sorted(path.stem for path in GOLDEN.glob("model_*.json")) == [
        f"model_{f}" for f in sorted(NETWORKS)
    ]


@pytest.mark.parametrize("file", quick(NETWORKS, "c2d_resnet50", "dtf_resnet50_16f"))
def test_golden_logits(file):
    stored, original, model = load(file)
    model.double().eval()
    state, report = convert_original_state_dict(original, model)
    model.load_state_dict(state, strict=True)
    assert len(report.dead) == NETWORKS[file][2]
    assert sorted([*report.converted, *report.dead]) == sorted(original)
    with torch.inference_mode():
        logits = model(seeded(stored["input_name"], stored["input_shape"]).double())
    expected = torch.tensor(stored["logits"], dtype=torch.float64)
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 1e-7 * expected.abs().max()
    declared = stored["trainable_parameters"]
    live = sum(p.numel() for p in model.parameters())
    buffers = ("weights_cor", "attn_mask", "_index", "running_mean", "running_var", "num_batches_tracked")
    dead = sum(original[name].numel() for name in report.dead if not name.endswith(buffers))
    assert live + dead == declared


@pytest.mark.parametrize("file", SMALL)
def test_golden_logits_in_float32(file):
    stored, original, model = load(file)
    state, _ = convert_original_state_dict(original, model)
    model.load_state_dict(state)
    with torch.inference_mode():
        logits = model.eval()(seeded(stored["input_name"], stored["input_shape"]))
    expected = torch.tensor(stored["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("file", SMALL)
def test_conversion_is_strict(file):
    _, original, model = load(file)
    name = next(name for name in original if name.endswith("filter_g.weight"))
    lacking = {key: v for key, v in original.items() if key != name}
    with pytest.raises(ValueError, match=r"nothing for backbone\..*\.dtf\.filter_weight"):
        convert_original_state_dict(lacking, model)
    with pytest.raises(ValueError, match=r"unknown entry surprise\.weight"):
        convert_original_state_dict({**original, "surprise.weight": torch.zeros(1)}, model)
    with pytest.raises(ValueError, match=r"has shape \(3, 3\).*needs"):
        convert_original_state_dict({**original, name: torch.zeros(3, 3)}, model)
    with pytest.raises(ValueError, match="another entry both become"):
        convert_original_state_dict({**original, f"module.{name}": original[name]}, model)


def test_names_under_module_are_converted():
    _, original, model = load(SMALL[0])
    state, report = convert_original_state_dict({f"module.{k}": v for k, v in original.items()}, model)
    model.load_state_dict(state)
    assert all(name.startswith("module.") for name in report.converted)


def test_dead_entries_are_reported_with_the_reason():
    _, original, model = load("dtf_swin_tiny_w2_16f")
    _, report = convert_original_state_dict(original, model)
    assert report.dead["layers.0.blocks.0.conv.weight"].startswith("1x3 convolution")
    assert "shifted block" in report.dead["layers.0.blocks.1.dtf_block.alpha1"]
    assert report.dead["layers.0.blocks.0.dtf_block.weights_cor"] == "constant 1/C"
    assert "62 dead" in str(report)
    assert "layers.0.blocks.1.dtf_block.alpha1" in str(report)


def test_weights_of_another_clip_length_do_not_fit():
    _, original, _ = load("dtf_resnet_1111_32f")
    _, _, model = load("dtf_resnet_1111_16f")
    with pytest.raises(ValueError, match=r"filter_g.weight has shape .*needs"):
        convert_original_state_dict(original, model)


def test_a_lone_block_ignores_nothing_else():
    block = DTFBlock(8, 4)
    with pytest.raises(ValueError, match=r"does not fit DTFBlock: unknown entry conv.weight; nothing for"):
        convert_original_state_dict({"conv.weight": torch.zeros(1)}, block)


def test_other_modules_have_no_counterpart():
    with pytest.raises(
        ValueError,
        match=r"a network or a layer of a family .*\bdtf, .*without temporal layers.*\), got Linear",
    ):
        convert_original_state_dict({}, torch.nn.Linear(1, 1))
