"""Every recipe composes and can be built; its numbers are those of its source and of the page about it."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import REPOSITORY, documented
from golden_files import GOLDEN, stored
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from quick import quick
from test_conf import CONF, options, settings

from dtf.data.augment import RandAugment, RandomErasing
from dtf.data.datamodule import VideoDataModule
from dtf.data.transforms import TrainTransform
from dtf.layers import temporal_layers
from dtf.lit import build
from dtf.lit.optim import OptimConfig, build_optimizer, learning_rate, parameter_groups
from dtf.models import VideoNetwork
from dtf.models.registry import architecture
from dtf.models.weights.convert import CONVERSIONS
from dtf.runs.composing import plain, recipes
from dtf.runs.process import RUN_FOLDER

EXPERIMENTS = options("experiment")
NUM_CLASSES = {"k400": 400, "ssv2": 174, "diving48": 48, "imagenet": 1000}

VIDEO_EXPERIMENTS = [option for option in EXPERIMENTS if not option.startswith("imagenet")]

# Part of a network's name -> its control, and the frames from one step to the next.
CONTROLS = {"swin": "c2d_swin", "convnext": "c2d_convnext", "former": "c2d_vit", "resnet": "c2d_resnet"}
STRIDES = {"tada2d": 1, "tadaconvnextv2": 2, "tadaformer": 2, "dtf": 4, "sifa": 4, "ddf": 1}

KEPT = ["k400_dtf_resnet50_16f", "ssv2_dtf_swin_base_16f", "imagenet_ddf_mul_resnet50"]  # by test-quick


@functools.cache
def recipe(option: str) -> DictConfig:
    return settings(f"experiment={option}", "data.root=/no/where")


@functools.cache
def network_of(option: str) -> VideoNetwork:
    """Without memory, weights and minutes."""
    cfg = recipe(option)

    model = OmegaConf.create(plain(cfg.model) | {"pretrained": False})
    with torch.device("meta"):
        return build.build_network(model, NUM_CLASSES[cfg.data.name], cfg.data.clip_length)


@pytest.mark.parametrize("option", quick(EXPERIMENTS, *KEPT))
def test_what_is_read_of_a_recipe_is_what_hydra_composes(option: str) -> None:
    [read] = [one for one in recipes(CONF) if one.name == option]
    cfg = recipe(option)
    assert (read.network, read.clip_length) == (cfg.model.name, cfg.data.clip_length)
    assert cfg.data.name in (read.data, "imagenet")
    assert read.settings <= set(cfg.model)


@pytest.mark.parametrize("option", quick(EXPERIMENTS, *KEPT))
def test_everything_can_be_built(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    cfg = recipe(option)
    videos = option in VIDEO_EXPERIMENTS
    length = f"_{cfg.data.clip_length}f" if videos else ""
    assert option == f"{cfg.data.name}_{cfg.model.name}{length}"
    assert cfg.model.pretrained is videos
    assert isinstance(build.instantiate(cfg.data), VideoDataModule)
    built = network_of(option)
    assert built.num_steps == cfg.data.clip_length // STRIDES[built.name.split("_")[0]]
    optimizer = build_optimizer(built, OptimConfig.from_mapping(plain(cfg.optim)))
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in built.parameters())
    trainer = build.build_trainer(
        OmegaConf.merge(cfg.trainer, {"accelerator": "cpu"}),
        tmp_path,
        build.build_callbacks(cfg.callbacks, build.task_class(cfg.task).headline()),
        [],
    )
    assert trainer.max_epochs == cfg.trainer.max_epochs
    # The last epoch is a validated one, so that it can be the best.
    assert cfg.trainer.max_epochs % cfg.trainer.check_val_every_n_epoch == 0


@pytest.mark.parametrize("option", quick(VIDEO_EXPERIMENTS, *KEPT[:2]))
def test_a_recipe_with_its_control_differs_in_the_model_only(option: str) -> None:
    """`experiment=NAME model=c2d_resnet` is the same training without temporal layers."""
    original = plain(recipe(option))
    control = next(control for part, control in CONTROLS.items() if part in option)
    twin = plain(settings(f"experiment={option}", f"model={control}", "data.root=/no/where"))
    with torch.device("meta"):
        settings_of_twin = OmegaConf.create(twin["model"] | {"pretrained": False})
        network = build.build_network(settings_of_twin, 5, original["data"]["clip_length"])
    assert network.num_steps == network_of(option).num_steps
    # What its patterns name, the control has.
    parameter_groups(network, OptimConfig.from_mapping(twin["optim"]))
    model, other = original.pop("model"), twin.pop("model")
    name = model.pop("name")
    family = architecture(name).family
    size = re.sub(r".*_(?:resnet|swin_)?", "", name)
    assert other.pop("name") == control + ("" if control == "c2d_resnet" else "_") + size
    # The network's size, stem and regularisation; the rest is what its layers take.
    assert {"layers", "depths", "blocks"} & other.keys()
    assert model | other == model
    own = {field.name for field in dataclasses.fields(family.options)}
    assert model.keys() - other.keys() <= own | {"dual", "deep_stem"}
    # Their folders are named by the clock.
    assert original.pop("output")
    assert twin.pop("output")
    assert original == twin


@pytest.mark.parametrize("option", quick([o for o in EXPERIMENTS if "swin" in o], KEPT[1]))
def test_what_is_new_in_a_swin_learns_at_the_full_rate(option: str) -> None:
    cfg = recipe(option)
    network, config = network_of(option), OptimConfig.from_mapping(plain(cfg.optim))
    rates = {
        name: group["lr"] for group in parameter_groups(network, config) for name in group["param_names"]
    }
    layers = tuple(f"{name}." for name in temporal_layers(network))
    assert any(name.startswith(layers) for name in rates)
    new = {name for name in rates if name.startswith((*layers, "backbone.head."))}
    for name, rate in rates.items():
        assert math.isclose(rate, config.lr * (1 if name in new else 0.1)), name


# ---- numbers ----

SIFA_COLORS = {
    "crop": "random_resized",
    "scale": [0.2, 1.0],
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "color_probability": 0.8,
    "grayscale": 0.2,
    "blur": 0.5,
    "rand_augment": None,
    "erase": None,
}


@pytest.mark.parametrize(("depth", "frames"), [(50, 16), (50, 32), (101, 16)])
@pytest.mark.parametrize("family", ["dtf", "sifa"])
def test_kinetics_resnet_is_sifas(family: str, depth: int, frames: int) -> None:
    cfg = recipe(f"k400_{family}_resnet{depth}_{frames}f")
    published = {"lr": 0.04, "decay": 1e-4, "clip": 40.0, "last_lr": 1e-6}
    summed = cfg.trainer.accumulate_grad_batches
    assert summed == 4
    optim, trainer, data = cfg.optim, cfg.trainer, cfg.data
    # lr x sum = (4 lr) x mean; so what is added to or compared with the mean is a quarter.
    assert math.isclose(optim.lr, published["lr"] * summed)
    assert math.isclose(optim.weight_decay, published["decay"] / summed)
    assert math.isclose(trainer.gradient_clip_val, published["clip"] / summed)
    assert math.isclose(optim.min_lr, published["last_lr"] / published["lr"])
    assert (optim.name, optim.momentum, optim.nesterov, optim.decay_all) == ("sgd", 0.9, False, True)
    assert (optim.warmup_epochs, optim.warmup_start, trainer.max_epochs) == (1.0, 0.01, 64)
    assert (data.batch_size, trainer.precision) == ({16: 24, 32: 12}[frames], "32-true")
    assert (data.frame_stride, data.sampling.train.scheme, data.test_views) == (1, "dense", "20x3")
    assert (data.short_side_px, data.augment.flip, cfg.model.dropout) == (256, 0.5, 0.5)
    assert SIFA_COLORS.items() <= plain(data.augment).items()
    assert cfg.label_smoothing == 0


def test_learning_rates_are_sifas() -> None:
    """Those of its scheduler, but for the second micro-batch at the highest one."""
    values, meta = stored(GOLDEN / "sifa" / "lr_schedule.npz")
    optim = OptimConfig.from_mapping(plain(recipe("k400_sifa_resnet50_16f").optim))
    steps, warmup = (meta["iters_per_epoch"] * meta[key] for key in ("epochs", "warmup_epochs"))
    share = learning_rate(optim.schedule, steps, warmup, optim.warmup_start, optim.min_lr)
    ours = [meta["base_lr"] * share(step) for step in range(steps)]
    theirs = values["lr"].tolist()
    assert theirs[warmup + 1] == pytest.approx(theirs[warmup], abs=0) == 0.04
    assert ours[:-1] == pytest.approx(theirs[: warmup + 1] + theirs[warmup + 2 :], rel=1e-9)


@pytest.mark.parametrize("option", [o for o in EXPERIMENTS if "_sifa_resnet" in o])
def test_sifas_resnets_are_the_released_networks(option: str) -> None:
    model = network_of(option)
    assert {key: model.arguments[key] for key in ("dual", "deep_stem", "every", "global_context")} == {
        "dual": True,
        "deep_stem": False,
        "every": 2,
        "global_context": True,
    }
    assert (model.arguments["kernel_size"], model.arguments["offset_init"]) == (3, "kaiming")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("model=sifa_resnet ", "sifa_resnet50"),
        ("model=sifa_swin ", "sifa_swin_base"),
        ("model=sifa_tiny", "sifa_tiny"),
        ("experiment=k400_sifa_resnet50_16f data.root=k400_256", "sifa_resnet50"),
    ],
)
def test_documented_commands_of_sifa(part: str, name: str) -> None:
    assert settings(*documented("sifa.md", part)[1:]).model.name == name


def test_averaged_gradients_make_the_steps_of_summed_ones() -> None:
    """The published optimiser on the sum of 4 gradients against ours on their mean: the same weights."""
    cfg = recipe("k400_dtf_resnet50_16f")
    gradients = torch.randn(5, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10

    def run(joined: torch.Tensor, lr: float, decay: float, clip: float) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(8, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr, momentum=0.9, weight_decay=decay)
        for gradient in joined:
            weight.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_([weight], clip)
            optimizer.step()
        return weight.detach()

    published = run(gradients.sum(1), 0.04, 1e-4, 40.0)
    ours = run(gradients.mean(1), cfg.optim.lr, cfg.optim.weight_decay, cfg.trainer.gradient_clip_val)
    # The clip divides by the norm plus 1e-6.
    assert torch.allclose(ours, published, rtol=1e-6)
    assert not torch.allclose(run(gradients.mean(1), cfg.optim.lr, 1e-4, 40.0), published, rtol=1e-3)


@pytest.mark.parametrize("family", ["dtf", "sifa"])
def test_something_something_resnet_is_sifas(family: str) -> None:
    cfg = recipe(f"ssv2_{family}_resnet50_16f")
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.trainer.gradient_clip_val) == (0.02, 1e-4, 40.0)
    assert (cfg.optim.warmup_epochs, cfg.trainer.max_epochs) == (5.0, 64)
    assert cfg.data.sampling.train.scheme == "segment"
    assert SIFA_COLORS.items() <= plain(cfg.data.augment).items()


@pytest.mark.parametrize(("size", "lr", "decay"), [("base", 3e-4, 0.05), ("small", 1e-3, 0.02)])
@pytest.mark.parametrize("family", ["dtf", "sifa"])
def test_kinetics_swin_is_video_swins(family: str, size: str, lr: float, decay: float) -> None:
    cfg = recipe(f"k400_{family}_swin_{size}_16f")
    assert (cfg.optim.name, cfg.optim.lr, cfg.optim.weight_decay) == ("adamw", lr, decay)
    assert (cfg.optim.warmup_epochs, cfg.trainer.max_epochs, cfg.data.test_views) == (2.5, 30, "4x3")
    assert (cfg.data.augment.flip, cfg.data.augment.rand_augment, cfg.data.augment.erase) == (0.5, None, None)
    drop_path_rate = network_of(f"k400_{family}_swin_{size}_16f").arguments["drop_path_rate"]
    assert drop_path_rate == {"base": 0.5, "small": 0.3}[size]


@pytest.mark.parametrize("network", ["dtf_swin_base_16f", "dtf_swin_base_32f", "sifa_swin_base_16f"])
def test_something_something_swin_is_video_swins(network: str) -> None:
    cfg = recipe(f"ssv2_{network}")
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.warmup_epochs) == (3e-4, 0.05, 2.5)
    assert (cfg.trainer.max_epochs, cfg.label_smoothing, cfg.model.drop_path_rate) == (60, 0.1, 0.4)
    data = build.instantiate(cfg.data)
    assert data.train_transform.rand_augment == RandAugment(4, 7, 0.5, 0.5)
    assert data.train_transform.erase == RandomErasing(0.25)
    assert data.test_views == "1x3"


# lr, end and start of it, epochs, those of warm-up, decay, clips in all, layer decay.
_TADA = {
    "k400_tada2d_resnet50_8f": (0.24, 0, 0.01, 100, 8, 1e-4, 128, None),
    "k400_tada2d_resnet50_16f": (0.12, 0, 0.01, 100, 8, 1e-4, 64, None),
    "ssv2_tada2d_resnet50_8f": (0.48, 0, 1e-4, 64, 4, 1e-4, 128, None),
    "ssv2_tada2d_resnet50_16f": (0.24, 0, 1e-4, 64, 4, 1e-4, 64, None),
    "k400_tadaconvnextv2_tiny_16f": (5e-4, 0, 1e-6, 100, 8, 0.02, 512, None),
    "k400_tadaconvnextv2_small_16f": (2.5e-4, 0, 1e-6, 100, 8, 0.02, 256, None),
    "k400_tadaconvnextv2_base_16f": (2.5e-4, 0, 1e-6, 100, 8, 0.02, 256, None),
    "ssv2_tadaconvnextv2_tiny_16f": (5e-4, 0, 1e-6, 64, 2.5, 0.02, 512, None),
    "ssv2_tadaconvnextv2_small_16f": (2.5e-4, 0, 1e-6, 64, 2.5, 0.02, 256, None),
    "ssv2_tadaconvnextv2_base_16f": (2.5e-4, 0, 1e-6, 64, 2.5, 0.02, 256, None),
    "k400_tadaformer_base_16f": (5e-5, 1e-6, 1e-6, 30, 5, 0.05, 256, 0.7),
    "k400_tadaformer_large_16f": (2e-5, 1e-6, 1e-6, 24, 5, 0.05, 64, 0.85),
    "ssv2_tadaformer_base_16f": (5e-4, 1e-6, 1e-8, 24, 4, 0.05, 256, 0.7),
    "ssv2_tadaformer_large_16f": (2.5e-4, 1e-6, 1e-8, 24, 4, 0.05, 128, 0.85),
}
_DROP_PATH = {"k400_tiny": 0.2, "k400_small": 0.4, "k400_base": 0.6, "ssv2_tiny": 0.3, "ssv2_small": 0.5}
_DROP_PATH["ssv2_base"] = 0.6


@pytest.mark.parametrize("option", [option for option in EXPERIMENTS if "_tada" in option])
def test_recipes_of_tada_are_the_published_ones(option: str) -> None:
    cfg = recipe(option)
    optim, data, augment = cfg.optim, cfg.data, cfg.data.augment
    lr, end, start, epochs, warmup, decay, total, layer_decay = _TADA[option]
    former, conv = "former" in option, "convnext" in option
    assert (optim.lr, optim.weight_decay, optim.layer_decay) == (lr, decay, layer_decay)
    assert optim.lr * optim.warmup_start == pytest.approx(start, rel=1e-12)
    assert optim.lr * optim.min_lr == pytest.approx(end, rel=1e-12)
    assert (cfg.trainer.max_epochs, optim.warmup_epochs, stated_batch(option)[0]) == (epochs, warmup, total)
    assert optim.schedule == (None if former else "whole_cosine")
    assert optim.name == ("adamw" if former or conv else "sgd")
    assert (
        (optim.betas == [0.9, 0.999]) if former or conv else (optim.momentum, optim.nesterov) == (0.9, True)
    )
    assert (cfg.trainer.precision, cfg.trainer.gradient_clip_val) == ("32-true", None)
    assert cfg.label_smoothing == (0.1 if former else 0)
    kinetics = option.startswith("k400")
    assert data.test_views == (("4x3" if former or conv else "10x3") if kinetics else "2x3")
    assert data.short_side_px == (224 if former else 256)
    built = build.instantiate(data)
    intervals = kinetics and not former
    assert data.sampling.train.scheme == ("interval" if intervals else "point")
    if intervals:
        train = data.sampling.train
        assert (train.target_fps, train.short, train.endpoint) == (30, "clamp", False)
        assert (data.clip_length, data.frame_stride) in {(8, 8), (16, 5)}
    if former or conv:
        assert built.train_transform.rand_augment == RandAugment(4, 9, 0.5, 0.5)
        assert (augment.scale, augment.grayscale, augment.brightness) == ([0.08, 1.0], 0.2, 0)
    else:
        assert (augment.crop, augment.short_side_px) == ("short_side_jitter", [224, 340])
        assert built.train_transform.rand_augment is None
    arguments = network_of(option).arguments
    assert arguments["dropout"] == 0.5
    if conv:
        assert arguments["drop_path_rate"] == _DROP_PATH[f"{option[:4]}_{cfg.model.size}"]
    else:
        assert arguments["drop_path_rate"] == (0.2 if option == "ssv2_tadaformer_large_16f" else 0)
    if former:
        assert (arguments["over_time"], arguments["double"]) == ((not kinetics,) * 2)
        assert data.mean == [0.48145466, 0.4578275, 0.40821073]
    else:
        assert (data.mean, data.std) == ([0.45] * 3, [0.225] * 3)


GROUPS = {
    "convnextv2_tiny_k400": "k400_tadaconvnextv2_tiny_16f",
    "tadaformer_b16_k400": "k400_tadaformer_base_16f",
}


DECAYED_OTHERWISE = {
    "tadaformer_b16_k400": {"backbone.pos_embed"},
    "convnextv2_tiny_k400": {
        *("backbone.stem..weight", "backbone.stages..downsample..weight", "gamma"),
        *(f"conv_dw.rf.{name}.weight" for name in ("norm", "norm_transformer", "b_bias")),
    },
}


@pytest.mark.parametrize("published", GROUPS)
def test_parameter_groups_are_those_of_tada(published: str) -> None:
    """Learning rates of all parameters; decay of all but those that the recipe names."""
    option = GROUPS[published]
    groups = json.loads((GOLDEN / "tada" / f"param_groups_{published}.json").read_text())["groups"]
    model = network_of(option)
    translate = CONVERSIONS["tada"].translate
    theirs = {
        translate(name, model): (group["lr_mult"], group["weight_decay"])
        for group in groups
        for name in group["names"]
    }
    config = OptimConfig.from_mapping(plain(recipe(option).optim))
    ours = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for name in group["param_names"]
    }
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name][0] == pytest.approx(theirs[name][0], rel=1e-12), name
    other = {name for name in ours if ours[name][1] != theirs[name][1]}
    assert {re.sub(r".*\.blocks\.\d+\.|\d+", "", name) for name in other} == DECAYED_OTHERWISE[published]


@pytest.mark.parametrize("option", sorted({*EXPERIMENTS} - {*VIDEO_EXPERIMENTS}))
def test_recipes_of_imagenet_are_the_published_one(option: str) -> None:
    cfg = recipe(option)
    optim = cfg.optim
    assert (optim.name, optim.lr, optim.momentum, optim.nesterov) == ("sgd", 0.4, 0.9, True)
    assert (optim.weight_decay, optim.decay_all, optim.warmup_epochs) == (1e-4, False, 5.0)
    assert math.isclose(optim.warmup_start * optim.lr, 1e-4)
    assert math.isclose(optim.min_lr * optim.lr, 1e-5)
    assert (optim.cooldown_epochs, cfg.trainer.max_epochs, cfg.label_smoothing) == (10.0, 130, 0.1)
    assert (cfg.trainer.precision, network_of(option).arguments["drop_path_rate"]) == ("16-mixed", 0.0)
    data = build.instantiate(cfg.data)
    assert (data.view.crop_px, data.view.short_side_px, data.view.interpolation) == (224, 256, "bicubic")
    train = data.train_transform
    assert (train.scale, train.ratio, train.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (train.interpolation, train.brightness, train.hue) == ("random", 0.0, 0.0)
    assert train.rand_augment == RandAugment(2, 7, 0.5, 0.5)
    assert train.erase == RandomErasing(0.4, boxes=3)


def test_the_control_of_imagenet_recipes_takes_pictures() -> None:
    cfg = settings("experiment=imagenet_ddf_mul_resnet101", "model=c2d_resnet", "data.root=/no/where")
    with torch.device("meta"):
        network = build.build_network(cfg.model, 1000, cfg.data.clip_length)
        assert network.eval()(torch.empty(1, 3, 1, 64, 64)).shape == (1, 1000)
    assert (cfg.model.name, network.arguments["dropout"]) == ("c2d_resnet101", 0.0)


@pytest.mark.parametrize("option", EXPERIMENTS)
def test_directions_stay_directions(option: str) -> None:
    augment = recipe(option).data.augment
    labels = bool(augment.flip_labels)  # of directions, which then follow the mirror
    assert augment.flip == (0.0 if option.startswith("ssv2") and "tada" not in option else 0.5)
    assert labels == option.startswith("ssv2")


# ---- the page ----

BATCH = re.compile(r"# total batch (\d+) = (\d+) devices x (\d+) x (\d+) accumulated")


def stated_batch(option: str) -> tuple[int, ...]:
    """(total, devices, batch_size, accumulated) as the recipe's file says, or the one that it starts from."""
    text = (CONF / "experiment" / f"{option}.yaml").read_text("utf-8")
    found = BATCH.search(text)
    if found:
        return tuple(map(int, found.groups()))
    assert "batch_size:" not in text, f"{option} does not say its total batch"
    assert "accumulate_grad_batches:" not in text
    return stated_batch(OmegaConf.create(text).defaults[0])


def row(option: str) -> str:
    """What docs/recipes.md must say about a recipe, but for whose it is."""
    cfg = recipe(option)
    data, augment, optim = cfg.data, cfg.data.augment, cfg.optim
    total, devices, batch, accumulated = stated_batch(option)
    stride = f" x {data.frame_stride}" if data.sampling.train.scheme in ("dense", "interval") else ""
    extras = [f"area {augment.scale[0]:g}-{augment.scale[1]:g}"]
    if augment.crop == "short_side_jitter":
        extras = [f"short side {augment.short_side_px[0]}-{augment.short_side_px[1]}"]
    if augment.flip:
        extras.append(f"flip {augment.flip:g}")
    if augment.brightness:
        jitter = "/".join(f"{augment[k]:g}" for k in ("brightness", "contrast", "saturation", "hue"))
        extras.append(f"jitter {jitter} p {augment.color_probability:g}")
    if augment.grayscale:
        extras.append(f"gray {augment.grayscale:g}")
    if augment.blur:
        extras.append(f"blur {augment.blur:g}")
    if augment.rand_augment:
        extras.append(f"RandAugment n{augment.rand_augment.n} m{augment.rand_augment.m}")
    if augment.erase:
        extras.append(f"erase {augment.erase.probability:g}")
    if cfg.label_smoothing:
        extras.append(f"smoothing {cfg.label_smoothing:g}")
    arguments = network_of(option).arguments
    for key, word in (("dropout", "dropout"), ("drop_path_rate", "drop path")):
        if arguments[key]:
            extras.append(f"{word} {arguments[key]:g}")
    kind = {"sgd": "SGD", "adamw": "AdamW"}[optim.name]
    cells = [
        f"`{option}`",
        f"{data.clip_length}{stride} {data.sampling.train.scheme}",
        f"{kind} {optim.lr:g}, decay {optim.weight_decay:g}",
        f"{total} = {devices} x {batch} x {accumulated}",
        f"{cfg.trainer.max_epochs} ({optim.warmup_epochs:g})",
        ", ".join(extras),
        f"{data.test_views} at {data.short_side_px}",
    ]
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("option", EXPERIMENTS)
def test_the_page_has_the_numbers(option: str) -> None:
    cfg = recipe(option)
    total, devices, batch, accumulated = stated_batch(option)
    assert (batch, accumulated) == (cfg.data.batch_size, cfg.trainer.accumulate_grad_batches)
    assert total == devices * batch * accumulated
    page = (REPOSITORY / "docs" / "recipes.md").read_text("utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{option}` |")]
    assert line.startswith(row(option))


# A documented command, and what makes its network small.
RUNS = {
    "trainer.accumulate_grad_batches=16": ["model.layers=[1,1,1,1]", "model.widths=[8,8,16,16]"],
    "model=c2d_swin": [
        *("model.depths=[1,1,1,1]", "model.num_heads=[1,1,1,1]", "model.embed_dim=16"),
        *("model.window_size=2", "data.short_side_px=32", "trainer.precision=32-true"),
    ],
    "experiment=imagenet_ddf_mul_resnet50": [
        *("model.layers=[1,1,1,1]", "model.widths=[8,8,16,16]", "trainer.precision=32-true"),
        *("data.crop_px=32", "data.short_side_px=32", "data.batch_size=4", "data.num_workers=0"),
    ],
}


def write_pictures(root: Path) -> None:
    """Four pictures of two of ImageNet's classes for training and four for validation, of noise."""
    source = np.random.default_rng(0)
    for folder in itertools.product(("train", "val"), ("n01440764", "n02510455")):
        root.joinpath(*folder).mkdir(parents=True)
        for name in ("0.JPEG", "1.JPEG"):
            pixels = source.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root.joinpath(*folder, name))


@pytest.mark.parametrize("part", RUNS)
def test_a_recipe_trains(part: str, tiny_data: list[str], tmp_path: Path, command, monkeypatch) -> None:
    """A step of a documented command on generated videos or pictures, with the recipe's own augmentation."""
    given = documented("recipes.md", part)
    (option,) = [word.split("=")[1] for word in given if word.startswith("experiment=")]
    seen = tmp_path / "seen.txt"  # clips are read and augmented in a process of their own
    augment = TrainTransform.augment

    def spy(self: TrainTransform, clip: torch.Tensor, label: int, rng: np.random.Generator):
        with seen.open("a") as file:
            print(f"{tuple(clip.shape)} {self}", file=file)
        return augment(self, clip, label, rng)

    monkeypatch.setattr(TrainTransform, "augment", spy)
    data, frames = ["data=motion", *tiny_data, "data.clip_length=16"], 16
    if option not in VIDEO_EXPERIMENTS:
        write_pictures(tmp_path / "pictures")
        data, frames = [f"data.root={tmp_path}/pictures"], 1
    # One process without a group: the port of a group may be taken by another test before it is opened.
    alone = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto"]
    small = ["debug=step", "model.pretrained=false", *alone]
    done = command(*given, *data, *small, *RUNS[part], f"output={tmp_path}/run")
    assert done.code == 0, done.err
    meant = build.instantiate(recipe(option).data).train_transform
    # What its crop does not use, and labels of other classes, are those of the data set.
    meant = dataclasses.replace(meant, crop_px=32, flip_labels=(), short_side_px=None)
    assert set(seen.read_text().splitlines()) == {f"({frames}, 3, 32, 32) {meant}"}
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["videos"] == 4


def test_ingredients_of_the_data_train(tiny_data: list[str], tmp_path: Path, command) -> None:
    """The documented command: 20 videos twice, in batches of 4 clips."""
    tiny = [*tiny_data, "model.widths=[8,8,16,16]", "model.stem_width=8", "model.filter_groups=8"]
    small = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_test_batches=1", f"output={tmp_path}"]
    done = command(*documented("recipes.md", "data.repeats=2"), *tiny, *small)
    assert done.code == 0, done.err
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 10
    augment = OmegaConf.load(tmp_path / "config.yaml").data.augment
    assert (augment.rand_augment, augment.erase) == ({"n": 4, "m": 7}, {"probability": 0.25})


def write_frames(root: Path, count: int) -> None:
    """Videos of two classes in the layouts of SIFA's pipeline, LMDBs and folders, in the same two lists.

    Each has 18 frames of 32 x 32 pixels of one colour.
    """
    lmdb = pytest.importorskip("lmdb", reason="LMDB is an optional extra: pip install -e '.[lmdb]'")
    lines = []
    for video in range(count):
        path = root / f"class {video % 2}" / f"video_{video}"
        path.mkdir(parents=True)
        images = []
        for frame in range(18):
            file = io.BytesIO()
            Image.new("RGB", (32, 32), (10 * frame, 40 * video, 90)).save(file, "JPEG")
            images.append(file.getvalue())
        if video // 2 % 2:
            for number, data in enumerate(images, 1):
                (path / f"{number:05d}.jpg").write_bytes(data)
        else:
            with lmdb.open(str(path), map_size=1 << 20) as store, store.begin(write=True) as writer:
                for number, data in enumerate(images, 1):
                    writer.put(f"{number:06d}.jpg".encode(), data)
        lines.append(f"{path.relative_to(root)} 18 {video % 2}\n")
    (root / "lists").mkdir()
    for split in ("train", "val"):
        (root / "lists" / f"{split}.txt").write_text("".join(lines))


def test_frames_and_lists_of_sifas_pipeline_train(tmp_path: Path, command) -> None:
    """The documented command takes a step of the recipe, in pocket size, and tests what it gave."""
    write_frames(tmp_path / "root", 4)
    small = ["model.widths=[8,8,8,8]", "model.layers=[1,1,2,1]", "model.pretrained=false", "data.crop_px=32"]
    tiny = ["data.batch_size=4", "data.num_workers=0", "trainer=cpu", "trainer.max_epochs=1"]
    tiny += ["callbacks=none", "logger=none", "data.test_views=1x1", "data.short_side_px=32"]
    given = documented("sifa.md", "data.class_names=null")
    done = command(*given, f"data.root={tmp_path}/root", *small, *tiny, f"output={tmp_path}/run")
    assert done.code == 0, done.err
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert (results["videos"], results["config"]["model"]["name"]) == (4, "sifa_resnet50")
    assert not (tmp_path / "run" / "broken_videos.txt").exists()
