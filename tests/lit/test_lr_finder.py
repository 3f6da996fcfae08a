"""The learning-rate search: rates of every group, where it stops, what it suggests."""

from __future__ import annotations

import csv
import itertools
import math

import pytest
import pytorch_lightning as pl
from engine import classifier, documented
from test_engine import SGD, fit
from test_ingredients import Linear
from torch.utils.data import DataLoader

from dtf.lit.lr_finder import HIGHEST, LOWEST, LearningRateSearch, smoothed, suggestion


class Rates(pl.Callback):
    """Learning rates of all parameter groups at each step, by name."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer, *args) -> None:
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


def search(steps: int = 30, optim: dict | None = None, **settings) -> tuple[LearningRateSearch, Rates]:
    model, rates = classifier(Linear(), 2, optim or SGD, kind=LearningRateSearch), Rates()
    model.num_steps = steps
    fit(model, rates, **({"max_epochs": steps, "max_steps": steps} | settings))
    return model, rates


def test_rates_grow_and_keep_the_scale_of_their_group() -> None:
    _, rates = search(optim={"name": "sgd", "lr": 0.03, "lr_scale": {"layer.bias": 10}})
    found = [(step["decay"], step["layer.bias/no_decay"]) for step in rates.rates]
    assert found[0] == pytest.approx((LOWEST, 10 * LOWEST))
    ratio = (HIGHEST / LOWEST) ** (1 / 29)
    for (a, _), (c, d) in itertools.pairwise(found):
        assert c / a == pytest.approx(ratio)
        assert d == pytest.approx(10 * c)


def test_losses_are_those_of_optimiser_steps() -> None:
    """Three batches an epoch, accumulated in threes: a step's loss is the mean over all twelve clips."""
    one, _ = search(accumulate_grad_batches=3)
    before = Linear()
    batch = next(iter(DataLoader(Whole(), batch_size=12)))
    expected = float(classifier(before, 2, SGD).task.loss(before, batch).loss)
    assert one.losses[0] == pytest.approx(expected, rel=1e-5)
    assert 20 < len(one.losses) <= 30


class Whole:
    def __init__(self) -> None:
        from test_engine import Clips

        self.clips = Clips(12)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict:
        return self.clips[i]


def test_it_stops_where_the_loss_diverges_or_is_not_finite() -> None:

    class Poison(pl.Callback):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step >= 20:
                batch["video"].mul_(self.factor)

    for factor, least in ((-100, 21), (float("nan"), 21)):
        model = classifier(Linear(), 2, SGD, kind=LearningRateSearch)
        fit(model, Poison(factor), max_epochs=100, max_steps=100)
        assert least <= len(model.losses) < least + 4
    assert math.isnan(model.losses[-1])


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = [10 ** (-6 + 7 * i / 99) for i in range(100)]
    # Falls around 1e-3, blows up above 1 and falls again, faster.
    losses = [3 - 2 / (1 + math.exp(-3 * (math.log10(r) + 3))) for r in rates]
    losses = [loss if r < 1 else 50 * (12 - r) for r, loss in zip(rates, losses, strict=True)]
    best = suggestion(rates, losses)
    assert best is not None
    assert rates[best] == pytest.approx(1e-3, rel=0.2)
    noisy = [loss + 0.05 * (-1) ** i for i, loss in enumerate(losses)]
    best = suggestion(rates[:80], smoothed(noisy[:80], 100))
    assert best is not None
    assert rates[best] == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0, 4.0], [math.nan] * 4, [1.0], [1.0, math.nan]])
def test_no_suggestion(losses: list[float]) -> None:
    assert suggestion([1e-3, 1e-2, 1e-1, 1.0][: len(losses)], losses) is None


def test_a_constant_stays_as_it_is_when_smoothed() -> None:
    assert smoothed([2.0] * 7, 20) == pytest.approx([2.0] * 7)


def test_the_documented_command(command, tiny_data: list[str], tmp_path) -> None:
    page = documented("recipes.md", "find_lr")
    assert page == ["train.py", "find_lr=100"]
    arguments = [*tiny_data, "model=c2d_tiny", "find_lr=20", "logger=none", f"output={tmp_path}/run"]
    done = command("train.py", *arguments)
    assert done.code == 0, done.err
    assert "the loss falls fastest at optim.lr=" in done.out
    rows = list(csv.DictReader((tmp_path / "run" / "lr_find.csv").open()))
    assert float(rows[0]["lr"]) == pytest.approx(LOWEST)
    assert (tmp_path / "run" / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "run" / "results.json").exists()

    # It left nothing behind that a run in the same folder would go on with, but not the other way round.
    arguments[arguments.index("find_lr=20")] = "debug=step"
    assert command("train.py", *arguments).code == 0
    done = command("train.py", *arguments, "find_lr=20")
    assert done.code == 1
    assert "holds a trained run" in done.err


@pytest.mark.parametrize("value", ["true", "5", "0.5"])
def test_a_wrong_number_of_steps(command, tiny_data: list[str], tmp_path, value: str) -> None:
    done = command("train.py", *tiny_data, "debug=step", f"find_lr={value}", f"output={tmp_path}/run")
    assert done.code == 1
    assert "find_lr must be a number of steps, 20 or more" in done.err
