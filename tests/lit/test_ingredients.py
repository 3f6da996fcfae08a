"""Ingredients of training recipes, each in Lightning's own loop: what they do, and that off means off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from engine import REPOSITORY, classifier
from hydra import compose, initialize_config_dir
from test_engine import LOSSES, SGD, Clips, Data, Record, fit, tiny
from torch import nn
from torch.utils.data import DataLoader

from dtf.data.dataset import EpochSampler
from dtf.errors import RunError
from dtf.lit import build
from dtf.lit.averaging import AverageWeights
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.lit.mixing import Mixing
from dtf.lit.norms import FreezeNorm, PreciseNorm, backbone_norms
from dtf.models import DTFBlock
from dtf.runs.composing import plain


class Linear(nn.Module):
    """Logits from the mean of each frame: a network without norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 2)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return self.layer(video.mean(dim=(3, 4)).flatten(1))


class Weights(pl.Callback):
    """The network's weights and buffers after each batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.network.state_dict().items()})


# ---- mixup and cutmix ------------------------------------------------------------------------------------


def clips(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip i is filled with i, of class i."""
    label = torch.arange(count)
    return label.float().view(-1, 1, 1, 1, 1).expand(count, 3, 4, 8, 10).clone(), label


def parts(target: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of a clip's own class, and the class of its partner."""
    assert torch.allclose(target.sum(dim=1), torch.ones(len(target)))
    own = target.gather(1, label[:, None]).squeeze(1)
    others = target.clone()
    others.scatter_(1, label[:, None], 0)
    assert ((others > 0).sum(dim=1) <= 1).all(), "one partner"
    return own, others.argmax(dim=1)


def test_mixup_mixes_clips_as_their_labels() -> None:
    torch.manual_seed(0)
    mixing = Mixing(6, mixup=0.8)
    shares = set()
    for _ in range(8):
        video, target, label = mixing(*clips())
        assert type(video) is torch.Tensor
        own, partner = parts(target, label)
        expected = own * label + (1 - own) * partner
        torch.testing.assert_close(video, expected.view(-1, 1, 1, 1, 1).expand_as(video))
        assert sorted(label.tolist()) == list(range(6))
        assert len(set(own.tolist())) == 1, "one share for the batch"
        shares.add(round(own[0].item(), 4))
    assert len(shares) > 4
    assert all(0 < share < 1 for share in shares)


def test_cutmix_replaces_a_box_of_all_frames() -> None:
    torch.manual_seed(0)
    mixing = Mixing(6, cutmix=1)
    boxes = 0
    for _ in range(8):
        video, target, label = mixing(*clips())
        own, partner = parts(target, label)
        for i in range(6):
            kept = video[i] == label[i]
            assert (kept | (video[i] == partner[i])).all()
            assert kept.float().mean() == pytest.approx(own[i].item(), abs=1e-6)
            assert (kept == kept[0, 0]).all(), "the same box in every frame"
        boxes += own[0].item() < 1
    assert boxes > 4


def test_partners_are_drawn() -> None:
    """Not neighbours: with repeated augmentation those are the same video."""
    torch.manual_seed(0)
    mixing = Mixing(6, mixup=1.0)
    found = [(*parts(target, label), label) for _, target, label in (mixing(*clips()) for _ in range(6))]
    assert len({tuple(((partner - label) % 6).tolist()) for _, partner, label in found}) > 3


def test_switch_and_probability() -> None:
    torch.manual_seed(0)

    def kinds(**settings: float) -> list[str]:
        found = []
        for _ in range(40):
            video, target, _ = Mixing(6, **settings)(*clips())
            if target.dim() == 1:
                found.append("none")
            else:
                found.append("cutmix" if (video == video.round()).all() else "mixup")
        return found

    assert set(kinds(mixup=1.0, cutmix=1.0, switch=0.0)) == {"mixup"}
    assert set(kinds(mixup=1.0, cutmix=1.0, switch=1.0)) == {"cutmix"}
    assert 10 < kinds(mixup=1.0, cutmix=1.0).count("cutmix") < 30
    assert 10 < kinds(mixup=1.0, probability=0.5).count("none") < 30
    assert set(kinds(mixup=1.0, probability=0.0)) == {"none"}


def test_off_draws_nothing_and_changes_nothing() -> None:
    before = torch.random.get_rng_state()
    video, label = clips()
    for mixing in (Mixing(6), Mixing.from_mapping(6, None)):
        found = mixing(video, label)
        assert found[0] is video
        assert found[1] is label
        assert found[2] is label
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -1}, r"mixing.mixup must be a number in 0\.\.100, got -1"),
        ({"probability": 2, "switch": "x"}, r"mixing.probability must .*; mixing.switch must"),
        ({"mixupp": 1}, r"there is no setting mixing.mixupp; did you mean mixup\?"),
    ],
)
def test_wrong_mixing(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(2, **settings)


def test_the_loss_is_that_of_mixed_labels_and_metrics_count_the_own_class() -> None:
    model = classifier(Linear(), 2, SGD, label_smoothing=0.1, mixing={"mixup": 0.8, "cutmix": 1.0})
    mixed, logits = [], []
    mix = model.task.mixing
    model.task.mixing = lambda *batch: mixed.append(mix(*batch)) or mixed[-1]  # type: ignore[assignment, func-returns-value]
    model.network.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
    record = Record()
    trainer = fit(model, record, max_epochs=1)
    assert len(record.losses) == 3
    own = 0.0
    for loss, output, (_, target, label) in zip(record.losses, logits, mixed, strict=True):
        assert target.shape == (4, 2)
        smooth = target * 0.9 + 0.05
        assert loss == pytest.approx(-(smooth * output.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
        own += (output.argmax(1) == label).sum().item()
    assert float(trainer.callback_metrics["train/top1"]) == pytest.approx(own / 12)


def test_mixing_depends_on_seed_epoch_and_batch_only() -> None:
    def losses(seed: int = 0, disturb: bool = False, **mixing: float) -> list[float]:
        class Disturb(pl.Callback):
            def on_train_batch_end(self, *args) -> None:
                if disturb:
                    torch.rand(7)

        record = Record()
        recipe = {"name": "sgd", "lr": 0.0}
        fit(classifier(Linear(), 2, recipe, seed=seed, mixing=mixing), record, Disturb())
        return record.losses

    found = losses(mixup=0.8)
    assert losses(mixup=0.8, disturb=True) == found
    assert losses(mixup=0.8, seed=1) != found
    assert losses() != found
    assert found[:3] != found[3:]


def test_evaluation_is_never_mixed() -> None:
    results = []
    for mixing in (None, {"mixup": 1.0}):
        model = classifier(Linear(), 2, {"name": "sgd", "lr": 0.0}, mixing=mixing)
        fit(model, limit_val_batches=1.0, max_epochs=1)
        results.append(model.results["val"].loss)
    assert results[0] == results[1]


# ---- averaged weights ------------------------------------------------------------------------------------


def average(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The moving average by hand, in float64; whole numbers are copied."""
    found = {k: v.double() for k, v in states[0].items()}
    for state in states[1:]:
        for key, value in state.items():
            floating = value.is_floating_point()
            found[key] = decay * found[key] + (1 - decay) * value.double() if floating else value.double()
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_over_optimiser_steps(accumulate: int) -> None:
    """Twelve clips in three batches; accumulated in twos, the third one is a step of its own."""
    weights, model = Weights(), classifier(tiny(), 2, SGD)
    fit(model, AverageWeights(0.7), weights, accumulate_grad_batches=accumulate)
    steps = weights.states if accumulate == 1 else [weights.states[i] for i in (1, 2, 4, 5)]
    expected = average(steps, 0.7)
    found = model.network.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    moved = (found["backbone.fc.weight"] - weights.states[-1]["backbone.fc.weight"]).abs().max()
    assert moved > 1e-4, "the average is not what was trained last"


def test_training_goes_on_with_the_trained_weights() -> None:
    losses = []
    for callbacks in ([], [AverageWeights(0.7)]):
        record = Record()
        fit(classifier(tiny(), 2, SGD), *callbacks, record, limit_val_batches=1.0)
        losses.append(record.losses)
    assert losses[0] == losses[1]


def test_validation_runs_on_the_average() -> None:
    weights, model = Weights(), classifier(Linear(), 2, SGD)
    fit(model, AverageWeights(0.5), weights, limit_val_batches=1.0, max_epochs=1)
    network = Linear().double()
    network.load_state_dict(average(weights.states, 0.5))
    video = torch.stack([Clips(12)[i]["video"] for i in range(12)]).double()
    expected = F.cross_entropy(network(video), torch.arange(12) % 2).item()
    assert model.results["val"].loss == pytest.approx(expected, rel=1e-4)


def test_what_does_not_change_stays_as_it_is() -> None:
    model = classifier(tiny(), 2, {"name": "sgd", "lr": 0.0})
    before = {k: v.clone() for k, v in model.network.named_parameters()}
    buffers = {
        k: v.clone() for k, v in model.network.named_buffers() if k.endswith(("analysis", "synthesis"))
    }
    fit(model, AverageWeights(0.9))
    assert buffers
    for name, value in (before | buffers).items():
        assert torch.equal(
            dict([*model.network.named_parameters(), *model.network.named_buffers()])[name], value
        )


def test_a_checkpoint_holds_both_and_an_exception_mixes_nothing_up(tmp_path: Path) -> None:
    """Saved by a callback that comes late, after an exception within a validation."""
    weights, path = Weights(), tmp_path / "x.ckpt"

    class Break(pl.Callback):
        def on_validation_batch_start(self, *args) -> None:
            raise KeyError("broken off")

        def on_exception(self, trainer, pl_module, exception) -> None:
            trainer.save_checkpoint(path)

    model = classifier(Linear(), 2, SGD)
    with pytest.raises(KeyError):
        fit(
            model,
            AverageWeights(0.5),
            weights,
            Break(),
            limit_val_batches=1.0,
            plugins=[AtomicCheckpointIO()],
        )
    saved = torch.load(path, weights_only=True)
    expected = average(weights.states, 0.5)
    for name in ("layer.weight", "layer.bias"):
        torch.testing.assert_close(saved["state_dict"][f"network.{name}"].double(), expected[name])
        assert torch.equal(saved["current_model_state"][f"network.{name}"], weights.states[-1][name])


def test_weights_of_16_bits_are_refused() -> None:
    with pytest.raises(RunError, match="ema needs weights of 32 bits"):
        fit(classifier(Linear(), 2, SGD), AverageWeights(0.5), precision="bf16-true")


@pytest.mark.parametrize("decay", [0, 1, 1.5, "x", True])
def test_wrong_decay(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"ema must be null or a decay between 0 and 1"):
        AverageWeights(decay)


# ---- batch norms -----------------------------------------------------------------------------------------


def test_frozen_norms_keep_their_statistics_and_filters_learn_theirs() -> None:
    network = tiny()
    for norm in backbone_norms(network):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 1, 2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fit(classifier(network, 2, SGD), FreezeNorm(), limit_val_batches=1.0)
    after = network.state_dict()
    inside = {f"{name}.norm" for name, m in network.named_modules() if isinstance(m, DTFBlock)}
    assert len(inside) == 8
    counted = {True: 0, False: 0}
    for name in before:
        module, _, last = name.rpartition(".")
        if last in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[name], after[name]) is (module not in inside), name
            counted[module in inside] += 1
    assert counted == {True: 24, False: 36}
    assert not torch.equal(before["backbone.bn1.weight"], after["backbone.bn1.weight"]), "affine parts train"


def test_norms_are_not_frozen_by_default() -> None:
    network = tiny()
    fit(classifier(network, 2, SGD), max_epochs=1)
    assert network.backbone.bn1.num_batches_tracked == 3


class Sampled(Data):
    """The same clips through the sampler of the data module."""

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(12, shuffle=True)
        return DataLoader(Indexed(self.clips), batch_size=4, sampler=sampler)


class Indexed:
    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return self.clips[key[1]]


class Stem(pl.Callback):
    """Statistics of the stem's batch norm during validation, and what they should be."""

    def __init__(self) -> None:
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.expected: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx:
            return
        network = pl_module.network
        video = torch.stack([Clips(12)[i]["video"] for i in range(12)])
        x = network.backbone.conv1(network.stem.fold(video)).double().transpose(0, 1).flatten(1)
        self.expected.append((x.mean(1), x.var(1, correction=0)))
        norm = network.backbone.bn1
        assert not norm.training
        self.found.append((norm.running_mean.double(), norm.running_var.double()))


@pytest.mark.parametrize("ema", [False, True])
def test_precise_statistics_are_those_of_the_evaluated_weights(ema: bool) -> None:
    """Three batches hold all twelve clips, so mean and variance over them are exact; with averaged weights
    they are the average's."""
    stem = Stem()
    averaging: list[pl.Callback] = [AverageWeights(0.5)] if ema else []
    network = tiny()
    fit(
        classifier(network, 2, SGD), *averaging, PreciseNorm(200), stem,
        data=Sampled(), limit_val_batches=1.0,
    )  # fmt: skip
    assert len(stem.found) == 2
    for found, expected in zip(stem.found, stem.expected, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.backbone.bn1.running_mean.double(), stem.expected[-1][0])


def test_running_statistics_are_not_precise() -> None:
    """Or the test above would prove nothing."""
    stem = Stem()
    fit(classifier(tiny(), 2, SGD), stem, data=Sampled(), limit_val_batches=1.0)
    assert not torch.allclose(stem.found[0][1], stem.expected[0][1], rtol=1e-2)


def test_precise_statistics_leave_training_and_frozen_norms_alone() -> None:
    losses = []
    for callbacks in ([], [PreciseNorm(2)]):
        record = Record()
        model = classifier(tiny(dropout=0.3, drop_path_rate=0.1), 2, SGD)
        fit(model, *callbacks, record, data=Sampled(), limit_val_batches=1.0)
        losses.append(record.losses)
    assert losses[0] == losses[1]

    network = tiny()
    model = classifier(network, 2, SGD)
    fit(model, FreezeNorm(), PreciseNorm(2, freeze_norm=True), data=Sampled(), limit_val_batches=1.0)
    assert network.backbone.bn1.num_batches_tracked == 0
    assert network.backbone.bn1.running_mean.eq(0).all()
    assert network.backbone.layer1[0].dtf1.norm.num_batches_tracked == 2 * (3 + 2)


# ---- Lightning's own: accumulation, clipping, precision --------------------------------------------------


def test_accumulated_batches_equal_one_large_batch() -> None:
    """For a network without batch norm; two batches of three and one of six clips make the same step."""

    class Sized(Data):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

        def train_dataloader(self) -> DataLoader:
            return DataLoader(self.clips, batch_size=self.size)

    found = []
    for size, accumulate in ((6, 1), (3, 2), (3, 1)):
        network, record = Linear(), Record()
        fit(classifier(network, 2, SGD), record, data=Sized(size), accumulate_grad_batches=accumulate)
        found.append((network.layer.weight.detach(), sorted(set(record.rates))))
    (large, rates), (accumulated, accumulated_rates), (small, _) = found
    torch.testing.assert_close(accumulated, large, rtol=1e-5, atol=1e-7)
    assert accumulated_rates == rates
    assert (small - large).abs().max() > 1e-3


@pytest.mark.parametrize("limit", [None, 0.01])
def test_clipping_bounds_the_step(limit: float | None) -> None:
    network = Linear()
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    recipe = {"name": "sgd", "lr": 1.0, "nesterov": False, "momentum": 0.0}
    fit(classifier(network, 2, recipe), gradient_clip_val=limit, max_steps=1, max_epochs=1)
    moved = (torch.cat([p.detach().flatten() for p in network.parameters()]) - before).norm()
    if limit is None:
        assert moved > 0.02
    else:
        assert moved == pytest.approx(limit, rel=1e-3)


def test_mixing_and_averaging_in_bfloat16() -> None:
    model, record, weights = classifier(tiny(), 2, SGD, mixing={"mixup": 0.8}), Record(), Weights()
    fit(model, AverageWeights(0.5), record, weights, precision="bf16-mixed", limit_val_batches=1.0)
    assert all(0.1 < loss < 2 for loss in record.losses)
    expected = average(weights.states, 0.5)["backbone.fc.weight"]
    found = model.network.state_dict()["backbone.fc.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# ---- conf/train.yaml -------------------------------------------------------------------------------------


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return plain(compose("train", overrides=[*overrides, "data.root=/no/where", "output=/no/where"]))


def test_by_default_everything_is_off() -> None:
    """The settings of conf/train.yaml reproduce the stored losses, with no draw and no rounding between."""
    config = settings("optim=sgd")
    model = classifier(
        tiny(dropout=0.3, drop_path_rate=0.1),
        2,
        SGD | {key: config["optim"][key] for key in ("lr_scale", "layer_decay", "decay_all")},
        label_smoothing=0.1,
        mixing=config["mixing"],
    )
    assert build.build_averages(config, model.network) == []
    assert config["label_smoothing"] == config["find_lr"] == 0
    assert config["grad_checkpointing"] is config["compile"] is False
    record = Record()
    fit(model, record)
    torch.testing.assert_close(record.losses, json.loads(LOSSES.read_text()), rtol=2e-4, atol=0)
    again = Record()
    fit(classifier(tiny(dropout=0.3, drop_path_rate=0.1), 2, SGD, label_smoothing=0.1), again)
    assert record.losses == again.losses


def test_averages_are_built_in_order_and_settings_without_effect_are_named(caplog) -> None:
    config = settings("ema=0.9", "norm.precise_batches=3", "norm.freeze=true")
    frozen, first, second = build.build_averages(config, tiny())
    assert isinstance(frozen, FreezeNorm)
    assert isinstance(first, AverageWeights)
    assert isinstance(second, PreciseNorm)
    assert first.decay == 0.9
    assert (second.num_batches, second.freeze_norm) == (3, True)
    build.build_averages(config, Linear())
    build.build_averages(settings("norm.precise_batches=3", "trainer.limit_val_batches=0"), tiny())
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "norm.freeze without model.pretrained",
        "norm.freeze has no effect",
        "norm.precise_batches has no effect without validation",
    ]
