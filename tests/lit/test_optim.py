"""Recipes: who is decayed, by name; the learning rate, step by step; wrong values."""

from __future__ import annotations

import pytest
import torch

from dtf.lit.optim import OptimConfig, build_optimizer, parameter_groups, warmup_cosine
from dtf.models import create_model

ADAMW = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05)


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
        clip_length=4,
        image_size=32,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_size=2,
        filter_groups=1,
    )
    tables = {n for n in found["no_decay"] | found["decay"] if n.endswith("relative_position_bias_table")}
    assert tables
    assert tables <= found["no_decay"]
    assert any(n.endswith("qkv.weight") for n in found["decay"])
    assert any(n.endswith("qkv.bias") for n in found["no_decay"])


def test_decay_all_is_one_group() -> None:
    config = OptimConfig(name="sgd", lr=0.1, weight_decay=1e-4, decay_all=True)
    assert set(names("c2d_tiny", config)) == {"decay"}


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
    factor = warmup_cosine(110, 10, warmup_start=0.1, min_lr=0.2)
    assert factor(0) == pytest.approx(0.1)
    assert factor(5) == pytest.approx(0.55)
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.6)
    assert factor(110) == pytest.approx(0.2)
    assert factor(1000) == pytest.approx(0.2)
    assert all(factor(i) < factor(i + 1) for i in range(10))
    assert all(factor(i) > factor(i + 1) for i in range(10, 110))


def test_no_warm_up() -> None:
    assert warmup_cosine(10, 0)(0) == 1.0


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
        ({"name": "sgd", "lr": 1, "warmup_start": 2, "min_lr": 3}, "warmup_start .*; min_lr"),
    ],
)
def test_wrong_values(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig.from_mapping(values)
