"""A loss that is not finite: the step is left out, and nothing of it stays behind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from engine import classifier
from test_engine import fit
from torch import nn

from dtf.errors import RunError
from dtf.lit.nonfinite import NonFiniteLoss

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


class Bomb(nn.Module):
    """A network with a batch norm whose features stop being finite in the batches of these numbers."""

    def __init__(self, *batches: int) -> None:
        super().__init__()
        self.batches, self.calls = batches, 0
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        scale = float("inf") if self.calls in self.batches else 1.0
        self.calls += 1
        return self.head(self.norm(video.mean(dim=(2, 3, 4)) * scale))


class Watch(pl.Callback):
    """Everything that a step changes, as each batch starts and as training ends."""

    def __init__(self) -> None:
        self.states: list[dict] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        momentum = [copy.deepcopy(s["momentum_buffer"]) for s in trainer.optimizers[0].state.values()]
        self.states.append({"weights": copy.deepcopy(pl_module.network.state_dict()), "momentum": momentum})
        self.states[-1]["weights"].pop("norm.num_batches_tracked")
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module) -> None:
        self.on_train_batch_start(trainer, pl_module, None, 0)

    def unchanged(self, i: int) -> bool:
        """Whether batch i changed nothing."""
        a, b = self.states[i : i + 2]
        return len(a["momentum"]) == len(b["momentum"]) and all(
            torch.equal(x, y)
            for x, y in zip(
                [*a["weights"].values(), *a["momentum"]],
                [*b["weights"].values(), *b["momentum"]],
                strict=True,
            )
        )


def test_the_step_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    watch = Watch()
    model = classifier(Bomb(1, 4), 2, SGD, nonfinite="skip", folder=tmp_path)
    trainer = fit(model, watch, gradient_clip_val=1.0)
    assert [watch.unchanged(i) for i in range(6)] == [False, True, False, False, True, False]
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert (model.nonfinite.steps, model.nonfinite.in_a_row) == (2, 0)
    lines = (tmp_path / "nonfinite_losses.txt").read_text().splitlines()
    names = ", ".join(f"/train/{i}.mp4" for i in (4, 5, 6, 7))
    assert lines == [f"the loss is nan in epoch {e}, batch 1; the videos were: {names}" for e in (0, 1)]
    logged = [r.message for r in caplog.records if r.name == "dtf.lit.nonfinite"]
    assert logged == [f"left out a step: {line}" for line in lines]
    assert trainer.global_step == 6, "the schedule counts it"
    assert len(set(watch.rates)) == 7
    assert float(trainer.callback_metrics["train/loss_epoch"]) > 0, "metrics are those of the sound batches"


def test_with_all_batches_that_are_accumulated_for_it() -> None:
    watch = Watch()
    fit(classifier(Bomb(1), 2, SGD, nonfinite="skip"), watch, accumulate_grad_batches=3)
    for key in ("head.weight", "norm.weight"):
        first, second, last = (watch.states[i]["weights"][key] for i in (0, 3, 6))
        assert torch.equal(first, second)
        assert not torch.equal(second, last)
    # Batch norms have seen the sound batches of the step.
    assert not torch.equal(*(watch.states[i]["weights"]["norm.running_mean"] for i in (0, 3)))
    assert torch.equal(*(watch.states[i]["weights"]["norm.running_mean"] for i in (1, 2)))


def test_ten_in_a_row_stop_the_run(tmp_path: Path) -> None:
    model = classifier(Bomb(*range(1, 6), *range(7, 99)), 2, SGD, nonfinite="skip", folder=tmp_path)
    with pytest.raises(RunError, match=r"not finite in 10 steps in a row, .* epoch 5, batch 1"):
        fit(model, max_epochs=9)
    assert len((tmp_path / "nonfinite_losses.txt").read_text().splitlines()) == 5 + 10

    # A run that is resumed counts on.
    resumed = classifier(Bomb(0), 2, SGD, nonfinite="skip", folder=tmp_path)
    checkpoint: dict = {}
    model.nonfinite.in_a_row = 9
    model.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    with pytest.raises(RunError, match="10 steps in a row"):
        fit(resumed)
    assert len((tmp_path / "nonfinite_losses.txt").read_text().splitlines()) == 16


def test_stopping_says_what_else_there_is(tmp_path: Path) -> None:
    watch = Watch()
    with pytest.raises(RunError, match=r"loss is nan in epoch 0, batch 2.* nonfinite=skip"):
        fit(classifier(Bomb(2), 2, SGD, folder=tmp_path), watch)
    assert "/train/8.mp4" in (tmp_path / "nonfinite_losses.txt").read_text()
    with pytest.raises(ValueError, match="nonfinite must be one of stop, skip, got 'ignore'"):
        classifier(Bomb(), 2, SGD, nonfinite="ignore")


def test_the_gradient_scaler_of_fp16_is_left_alone() -> None:
    """In the order in which Lightning calls: a step that the scaler leaves out for its gradients does not
    count, and one that is left out for its loss does not break the scaler."""
    rule = NonFiniteLoss("skip")
    head = nn.Linear(2, 1)
    before = copy.deepcopy(head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss_factor, gradient_factor, left_out in ((1.0, float("inf"), 0), (float("nan"), 1.0, 1)):
        loss = head(torch.ones(1, 2)).sum() * loss_factor
        assert rule.found(loss, "here", list) == bool(left_out)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        for parameter in head.parameters():
            assert parameter.grad is not None
            parameter.grad *= gradient_factor
        scaler.unscale_(optimizer)
        rule.before_step(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (rule.steps, rule.in_a_row) == (left_out, left_out)
        assert all(torch.equal(before[k], v) for k, v in head.state_dict().items())
