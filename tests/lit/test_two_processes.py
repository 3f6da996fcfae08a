"""Two processes on the CPU (gloo) against one with the double batch: the same losses, gradients, weights,
metrics and videos; one process's NaN or signal is everybody's.

In float64 (but for the cross entropy, which is float32 always), so that what is left are its roundings.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from engine import SignalAtStep, classifier
from test_engine import SGD, Clips, join, tiny
from torch import nn
from torch.distributed.nn.functional import all_reduce

from dtf.data.dataset import EpochSampler, ResumableLoader
from dtf.lit.averaging import AverageWeights
from dtf.lit.engine import Engine
from dtf.lit.norms import FreezeNorm, PreciseNorm
from dtf.lit.survival import LastCheckpoint, StopOnSignal, Stopped
from dtf.models import DTFBlock

pytestmark = pytest.mark.slow  # trains in two processes


class KeyedClips(Clips):
    """Clips of (epoch, index); the one with number `nan` is not finite in epoch 0."""

    nan: int | None = None

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        clip = super().__getitem__(index)
        return clip | {"video": clip["video"] * float("nan")} if (epoch, index) == (0, self.nan) else clip


class Data(pl.LightningDataModule):
    """Training and validation clips in the order of the framework's own sampler."""

    def __init__(self, train: int, val: int, batch_size: int, nan: int | None = None) -> None:
        super().__init__()
        self.train, self.val, self.batch_size = KeyedClips(train), KeyedClips(val), batch_size
        self.train.nan = nan

    def train_dataloader(self) -> ResumableLoader:
        sampler = EpochSampler(len(self.train), shuffle=True)
        return self.loader(self.train, sampler, drop_last=True)

    def val_dataloader(self) -> ResumableLoader:
        sampler = EpochSampler(len(self.val), shuffle=False)
        return self.loader(self.val, sampler)

    def loader(self, clips: KeyedClips, sampler: EpochSampler, **settings) -> ResumableLoader:
        return ResumableLoader(
            clips,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=join,
            **settings,
        )

    def video_path(self, stage: str, video_index: int) -> str:
        return f"/{stage}/{video_index}.mp4"


class GatheredNorm(nn.BatchNorm1d):
    """What SyncBatchNorm does, which PyTorch has for GPUs alone: statistics of the rows of all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        count = torch.tensor(float(len(x)), dtype=x.dtype)
        sums = torch.cat([x.sum(0), x.square().sum(0), count[None]])
        sums = all_reduce(sums) if dist.is_initialized() else sums
        total, squares, rows = sums[: self.num_features], sums[self.num_features : -1], sums[-1]
        mean = total / rows
        variance = squares / rows - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
        return (x - mean) / (variance + self.eps).sqrt()


def network() -> nn.Module:
    """DTF blocks that do something, with norms over all processes; see `FreezeNorm` for the other norms."""
    net = tiny()
    for block in net.modules():
        if isinstance(block, DTFBlock):
            nn.init.normal_(block.alpha, std=0.1, generator=torch.Generator().manual_seed(1))
            block.norm = GatheredNorm(block.dim, affine=False)
    return net


class Record(pl.Callback):
    """What each step saw and did."""

    def __init__(self) -> None:
        self.found: dict[str, list] = {"videos": [], "losses": [], "gradients": []}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.found["videos"].append((trainer.current_epoch, batch["video_index"].tolist()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters()}
        self.found["gradients"].append(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found["losses"].append(outputs["loss"].item())


def fit(data: Data, model: Engine, *callbacks: pl.Callback, folder: Path, devices: int) -> dict:
    record = Record()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=2,
        callbacks=[record, *callbacks, StopOnSignal(folder)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    code = None
    try:
        trainer.fit(model, datamodule=data)
    except Stopped as stopped:
        code = stopped.code
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "train/loss"}
    return record.found | {
        "metrics": metrics,
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "nonfinite": model.nonfinite.state_dict(),
        "code": code,
    }


def experiments(folder: Path, devices: int, rank: int = 0) -> dict[str, dict]:
    batch = 4 // devices
    model = classifier(network(), 2, SGD)
    found = {"equal": fit(Data(12, 7, batch), model, FreezeNorm(), folder=folder, devices=devices)}
    model = classifier(network(), 2, SGD)
    callbacks = [FreezeNorm(), AverageWeights(0.5)]
    found["ema"] = fit(Data(12, 7, batch), model, *callbacks, folder=folder, devices=devices)
    # The same weights all along: the stem's statistics are those of the data.
    model = classifier(tiny(), 2, {"name": "sgd", "lr": 0.0})
    found["precise"] = fit(Data(12, 7, batch), model, PreciseNorm(3), folder=folder, devices=devices)
    if devices > 1:
        # 13 videos: one process has fewer of its own than the other. Video 5 is on one process only.
        # No norm that gathers: it would hand the NaN on by itself.
        model = classifier(tiny(), 2, SGD, nonfinite="skip", folder=folder)
        found["nan"] = fit(Data(13, 7, batch, nan=5), model, folder=folder, devices=devices)
        model = classifier(network(), 2, SGD)
        signals = [SignalAtStep("SIGUSR1", 1)] if rank == 1 else []
        signals += [FreezeNorm(), LastCheckpoint(folder / "checkpoints" / "last.ckpt")]
        found["signal"] = fit(Data(12, 7, batch), model, *signals, folder=folder, devices=devices)
    return found


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)  # the threads of the process that this one is a fork of are not here
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.save(experiments(folder, 2, rank), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], dict]:
    """The folder, what each of two processes found, and what one process finds."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A fork has everything imported; where there is a GPU in use it cannot have that.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
    processes = [context.Process(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = experiments(folder, 1)
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)], alone


def test_losses_gradients_weights_and_metrics(both) -> None:
    _, two, alone = both
    (first, second), one = (found["equal"] for found in two), alone["equal"]
    assert len(one["losses"]) == 6
    means = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert means == pytest.approx(one["losses"], rel=1e-6)
    assert first["losses"] != pytest.approx(second["losses"], rel=1e-3), "each sees its own videos"
    exact = {"rtol": 1e-5, "atol": 1e-7}
    for key in ("gradients", "state", "metrics"):
        torch.testing.assert_close(first[key], one[key], **exact)
        torch.testing.assert_close(second[key], one[key], **exact)
    assert all(gradient.any() for gradient in one["gradients"][0].values())
    assert set(one["metrics"]) >= {"train/top1", "train/loss_epoch", "val/top1", "val/top5", "val/loss"}


def test_averaged_weights(both) -> None:
    _, two, alone = both
    for found in two:
        for key in ("state", "metrics"):
            torch.testing.assert_close(found["ema"][key], alone["ema"][key], rtol=1e-5, atol=1e-7)
        weight = "network.backbone.fc.weight"
        assert not torch.allclose(found["ema"]["state"][weight], found["equal"]["state"][weight], rtol=1e-3)


def test_precise_statistics_are_those_of_all_processes(both) -> None:
    _, two, alone = both
    clips = torch.stack([Clips(12)[i]["video"] for i in range(12)]).double()
    net = tiny().double()
    stem = net.backbone.conv1(net.stem.fold(clips)).transpose(0, 1).flatten(1)
    expected = stem.mean(1), stem.var(1, correction=0)
    for found in (*two, alone):
        state = found["precise"]["state"]
        exact = tuple(state[f"network.backbone.bn1.running_{name}"] for name in ("mean", "var"))
        torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-8)
    # Deeper ones depend on which clips meet in a batch, and are the same on both processes all the same.
    for name, value in two[0]["precise"]["state"].items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, two[1]["precise"]["state"][name]), name


def test_every_video_once_in_each_epoch(both) -> None:
    _, two, alone = both
    for epoch in range(2):
        seen = [[i for e, videos in f["equal"]["videos"] if e == epoch for i in videos] for f in two]
        assert sorted(seen[0] + seen[1]) == list(range(12))
        # Step for step the two together see what one process with the double batch sees.
        steps = [[v for e, v in f["equal"]["videos"] if e == epoch] for f in (*two, alone)]
        for a, b, c in zip(*steps, strict=True):
            assert sorted(a + b) == sorted(c)


def test_uneven_numbers_of_videos_end(both) -> None:
    _, two, _ = both
    for epoch in range(2):
        seen = [[i for e, videos in f["nan"]["videos"] if e == epoch for i in videos] for f in two]
        assert [len(videos) for videos in seen] == [6, 6], "13 videos: 7 for each, a short batch is left out"
        assert len(set(seen[0] + seen[1])) == 12


def test_a_loss_that_is_not_finite_on_one_process(both) -> None:
    folder, two, _ = both
    first, second = (found["nan"] for found in two)
    assert sum(bool(torch.tensor(f["losses"]).isnan().any()) for f in (first, second)) == 1
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    assert all(value.isfinite().all() for value in first["state"].values())
    for found in (first, second):
        assert found["nonfinite"]["steps"] == 1
        assert len(found["losses"]) == 6
    (line,) = (folder / "nonfinite_losses.txt").read_text().splitlines()
    assert "/train/5.mp4" in line
    assert line.count(".mp4") == 2, "the videos of the other process are not to blame"


def test_a_signal_to_one_process_stops_both(both) -> None:
    folder, two, _ = both
    codes = [found["signal"]["code"] for found in two]
    assert codes == [128 + 10, 0], "the first one speaks for all"
    assert [len(found["signal"]["losses"]) for found in two] == [2, 2]
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["train_metrics"]["train/top1"]["count"] == 8, "clips of both"


def test_sync_batchnorm_reaches_the_spectral_norms() -> None:
    """The conversion; what it then computes over processes is that of GatheredNorm above."""
    net = tiny()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    video = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = net(video)
    net.load_state_dict(before)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    blocks = [m for m in converted.modules() if isinstance(m, DTFBlock)]
    assert blocks
    assert all(type(block.norm) is nn.SyncBatchNorm and not block.norm.affine for block in blocks)
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    assert converted.state_dict().keys() == before.keys()
    assert torch.equal(converted(video), expected)
