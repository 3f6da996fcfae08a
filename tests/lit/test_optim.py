"""Recipes: who is decayed, by name; the learning rate, step by step; wrong values."""

from __future__ import annotations

import pytest
import torch
from golden_files import GOLDEN, stored

from dtf.lit.optim import OptimConfig, build_optimizer, learning_rate, parameter_groups
from dtf.models import create_model

ADAMW = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05)

TINY_SWIN = {
    "clip_length": 4,
    "image_size": 32,
    "embed_dim": 12,
    "depths": [1, 2, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 2,
    "filter_groups": 1,
}


def names(model: str, config: OptimConfig = ADAMW, **overrides) -> dict[str, set[str]]:
    network = create_model(model, num_classes=3, **overrides)
    groups = parameter_groups(network, config)
    found = {group["name"]: set(group["param_names"]) for group in groups}
    everything = {name for name, p in network.named_parameters() if p.requires_grad}
    assert set().union(*found.values()) == everything
    assert sum(len(members) for members in found.values()) == len(everything)
    return found


def test_dtf_tiny_by_name() -> None:
    found = names("dtf_tiny", clip_length=4)
    ends = {kind: {name.rsplit(".", 1)[-1] for name in members} for kind, members in found.items()}
    assert ends["decay"] == {"weight", "filter_weight", "mix_weight"}
    assert ends["no_decay"] == {"weight", "bias", "alpha"}
    assert {"backbone.bn1.weight", "backbone.bn1.bias", "backbone.fc.bias"} <= found["no_decay"]
    assert {"backbone.conv1.weight", "backbone.fc.weight"} <= found["decay"]
    assert all("bn" not in name and "norm" not in name for name in found["decay"])


def test_swin_position_tables_are_not_decayed() -> None:
    found = names(
        "dtf_swin_tiny",
        **TINY_SWIN,
    )
    tables = {n for n in found["no_decay"] | found["decay"] if n.endswith("relative_position_bias_table")}
    assert tables
    assert tables <= found["no_decay"]
    assert any(n.endswith("qkv.weight") for n in found["decay"])
    assert any(n.endswith("qkv.bias") for n in found["no_decay"])


def test_decay_all_is_one_group() -> None:
    config = OptimConfig(name="sgd", lr=0.1, weight_decay=1e-4, decay_all=True)
    assert set(names("c2d_tiny", config)) == {"decay"}


def rates(model: str, config: OptimConfig, **overrides) -> dict[str, float]:
    """Learning rate by parameter name, from the optimiser itself."""
    network = create_model(model, num_classes=3, **overrides)
    rate = {
        id(p): group["lr"] for group in build_optimizer(network, config).param_groups for p in group["params"]
    }
    return {name: rate[id(p)] for name, p in network.named_parameters()}


def test_lr_scale_by_name() -> None:
    """Video-Swin's backbone at a tenth, fresh classifier and filters: the last pattern counts."""
    scale = {"backbone": 0.1, "backbone.fc": 1, "*.dtf*": 10}
    config = OptimConfig(name="sgd", lr=1.0, weight_decay=1e-4, lr_scale=scale)
    found = rates("dtf_tiny", config, clip_length=4)
    for name, rate in found.items():
        expected = 10 if ".dtf" in name else 1 if name.startswith("backbone.fc.") else 0.1
        assert rate == pytest.approx(expected), name
    groups = names("dtf_tiny", config, clip_length=4)
    assert set(groups) == {f"{p}/{kind}" for p in scale for kind in ("decay", "no_decay")}
    assert groups["backbone.fc/no_decay"] == {"backbone.fc.bias"}
    assert "backbone.layer1.0.dtf1.alpha" in groups["*.dtf*/no_decay"]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"backbon": 0.1}, "lr_scale.backbon fits no parameter; did you mean backbone?"),
        ({"back": 0.1}, "lr_scale.back fits no parameter"),
        ({"*.gamma": 0.1}, r"lr_scale.\*.gamma fits no parameter"),
    ],
)
def test_a_pattern_that_fits_nothing(scale: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates("c2d_tiny", OptimConfig(name="sgd", lr=1.0, lr_scale=scale))


def test_layer_decay_of_a_resnet_by_name() -> None:
    """Six blocks: the stem is layer 0, the classifier layer 7. A block's filters have its learning rate."""
    config = OptimConfig(name="sgd", lr=1.0, weight_decay=1e-4, layer_decay=0.5)
    small = {"clip_length": 4, "layers": [1, 2, 1, 2], "widths": [8, 8, 8, 8], "filter_groups": 8}
    found = rates("dtf_tiny", config, **small)
    blocks = ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0", "layer4.1"]
    prefixes = [
        ("backbone.conv1.", "backbone.bn1."),
        *[(f"backbone.{b}.",) for b in blocks],
        ("backbone.fc.",),
    ]
    seen = 0
    for layer, prefix in enumerate(prefixes):
        members = {name for name in found if name.startswith(prefix)}
        assert {found[name] for name in members} == {0.5 ** (7 - layer)}, prefix
        seen += len(members)
    assert seen == len(found)
    assert found["backbone.layer2.1.dtf2.filter_weight"] == 0.5**4
    groups = names("dtf_tiny", config, **small)
    assert list(groups)[:2] == ["layer_0/decay", "layer_0/no_decay"]
    assert groups["layer_7/no_decay"] == {"backbone.fc.bias"}


def test_layer_decay_of_a_swin_by_name() -> None:
    """Five blocks; the patch embedding is layer 0, the classifier 6, the last norm with the last block."""
    found = rates("dtf_swin_tiny", OptimConfig(name="adamw", lr=1.0, layer_decay=0.5), **TINY_SWIN)
    expected = {
        "backbone.patch_embed.": 0,
        "backbone.layers.0.blocks.0.": 1,
        "backbone.layers.1.downsample.": 2,
        "backbone.layers.1.blocks.0.": 2,
        "backbone.layers.1.blocks.1.": 3,
        "backbone.layers.2.downsample.": 4,
        "backbone.layers.2.blocks.0.": 4,
        "backbone.layers.3.downsample.": 5,
        "backbone.layers.3.blocks.0.": 5,
        "backbone.norm.": 5,
        "backbone.head.": 6,
    }
    for name, rate in found.items():
        (layer,) = {layer for prefix, layer in expected.items() if name.startswith(prefix)}
        assert rate == 0.5 ** (6 - layer), name
    assert any(".dtf." in name for name in found)


def test_scale_and_layer_decay_multiply() -> None:
    config = OptimConfig(name="sgd", lr=1.0, layer_decay=0.5, lr_scale={"*.dtf*": 10})
    found = rates("dtf_tiny", config, clip_length=4)
    assert found["backbone.layer4.0.conv1.weight"] == 0.5
    assert found["backbone.layer4.0.dtf1.alpha"] == 5.0


def test_layer_decay_needs_layers() -> None:
    with pytest.raises(ValueError, match=r"optim.layer_decay: Linear does not say which layer"):
        parameter_groups(torch.nn.Linear(2, 2), OptimConfig(name="sgd", lr=1.0, layer_decay=0.5))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_has_the_groups(name: str) -> None:
    network = create_model("dtf_tiny", num_classes=3, clip_length=4)
    config = OptimConfig(name=name, lr=0.1, weight_decay=0.3, momentum=0.8)
    optimizer = build_optimizer(network, config)
    by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(network.named_parameters())
    assert by_parameter[id(parameters["backbone.conv1.weight"])]["weight_decay"] == 0.3
    assert by_parameter[id(parameters["backbone.bn1.weight"])]["weight_decay"] == 0.0
    assert len(by_parameter) == len(parameters)
    assert isinstance(optimizer, torch.optim.SGD if name == "sgd" else torch.optim.AdamW)
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8
        assert optimizer.param_groups[0]["nesterov"]


def test_a_frozen_parameter_is_left_out() -> None:
    network = create_model("c2d_tiny", num_classes=3)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.get_parameter("backbone.fc.weight").requires_grad_(True)
    assert [g["param_names"] for g in parameter_groups(network, ADAMW)] == [["backbone.fc.weight"]]


def test_warm_up_and_cosine() -> None:
    factor = learning_rate("cosine", 110, 10, warmup_start=0.1, min_lr=0.2)
    assert factor(0) == pytest.approx(0.1)
    assert factor(5) == pytest.approx(0.55)
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.6)
    assert factor(110) == pytest.approx(0.2)
    assert factor(1000) == pytest.approx(0.2), "cool-down"
    assert all(factor(i) < factor(i + 1) for i in range(10))
    assert all(factor(i) > factor(i + 1) for i in range(10, 110))


def test_no_warm_up() -> None:
    assert learning_rate("cosine", 10, 0)(0) == 1.0


@pytest.mark.parametrize(
    "recipe", ["tada2d_k400", "tada2d_ssv2", "convnextv2_tiny_k400", "tadaformer_b16_k400"]
)
def test_schedules_are_those_of_tada(recipe: str) -> None:
    """Four steps an epoch; its cosine ends at zero, its cosine_v2 at a rate of its own."""
    rates, meta = stored(GOLDEN / "tada" / "lr_policy.npz")
    about = meta[recipe]
    peak, steps = about["base_lr"], 4 * about["max_epoch"]
    assert rates[f"{recipe}_epoch"].tolist() == [step / 4 for step in range(steps)]
    name, end = {"cosine": ("whole_cosine", 0.0), "cosine_v2": ("cosine", about["cosine_end_lr"])}[
        about["policy"]
    ]
    start = about["warmup_start_lr"] / peak
    factor = learning_rate(name, steps, 4 * about["warmup_epochs"], start, end / peak)
    found = torch.tensor([peak * factor(step) for step in range(steps)], dtype=torch.float64)
    torch.testing.assert_close(found, rates[recipe], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adam", "lr": 1}, "name must be sgd or adamw, got 'adam'"),
        ({"name": "sgd", "lr": -1}, "lr must be a number"),
        ({"name": "sgd", "lr": "1e-3x"}, "lr must be a number"),
        ({"name": "sgd", "lr": float("nan")}, "lr must be a number"),
        ({"name": "sgd", "lr": 1, "momentum": 0}, "nesterov needs momentum"),
        (
            {"name": "sgd", "lr": 1, "momentun": 0},
            "there is no setting optim.momentun; did you mean momentum?",
        ),
        ({"lr": 1}, "optim needs name"),
        ({"name": "sgd", "lr": 1, "schedule": "cosin"}, "schedule must be one of cosine, whole_cosine, got"),
        ({"name": "sgd", "lr": 1, "warmup_start": 2, "min_lr": 3}, "warmup_start .*; min_lr"),
        ({"name": "sgd", "lr": 1, "layer_decay": 1.5}, "layer_decay must be null or a number above 0"),
        ({"name": "sgd", "lr": 1, "lr_scale": {"backbone": 0}}, "lr_scale.backbone must be a number above 0"),
        ({"name": "sgd", "lr": 1, "lr_scale": 0.1}, "lr_scale must be a mapping"),
    ],
)
def test_wrong_values(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig.from_mapping(values)
