"""What dashboards show beside the curves: what the task shows, clips, temporal filters."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch.nn.utils import get_total_norm

from dtf.files import write_json
from dtf.layers.temporal import Maps, layer_maps, temporal_layers
from dtf.lit.engine import Engine
from dtf.lit.tasks.task import Shown
from dtf.runs.folder import run_folder
from dtf.text import printable
from dtf.view import pictures
from dtf.view.figures import spread

FILTERS = "filters.json"
FRAMES_PER_SECOND = 8


@dataclass(frozen=True)
class Clip:
    """A video as the network sees it, with what it makes of it.

    Attributes:
        frames: (T, S, S, 3) uint8.
        caption: what was found in it.
    """

    frames: np.ndarray
    caption: str


@dataclass(frozen=True)
class Show:
    """What goes to the loggers after an evaluation.

    Attributes:
        stage: "val" or "test".
        result: pictures and tables of the task.
        clips: a few videos, the same ones after every evaluation.
        filters: what maps of the temporal layers are told apart by -> picture of them, (H, W, 3) uint8.
        weights: name of a watched parameter of the temporal layers -> its values.
    """

    stage: str
    result: Shown
    clips: list[Clip]
    filters: dict[str, np.ndarray]
    weights: dict[str, torch.Tensor]


class Dashboard(Callback):
    """Feeds W&B and TensorBoard after every evaluation, and logs gradients and memory.

    Logs `train/grad_norm` (of all gradients, before clipping, at the steps that are logged),
    `train/gpu_memory_gib` (peak of this epoch, the largest of all processes) or, without a GPU,
    `train/memory_gib` (peak of this process so far). After the test of a network with temporal layers,
    OUTPUT/filters.json says what they did: {layer: {"over": what its maps are told apart by, "energies":
    {label of a map: its energy, averaged over clips and pixels}}}.

    Only the first process writes. It draws nothing at random and changes no state of the training.

    Args:
        every_n_epochs: pictures and tables after the validation of every so many epochs, and of the last one.
        num_clips: videos shown; 0: none, and no filters.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(self, every_n_epochs: int = 1, num_clips: int = 4) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"callbacks.dashboard.every_n_epochs must be at least 1, got {every_n_epochs}")
        if num_clips < 0:
            raise ValueError(f"callbacks.dashboard.num_clips must be at least 0, got {num_clips}")
        self.every_n_epochs = every_n_epochs
        self.num_clips = num_clips

    # ---- curves --------------------------------------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the norm of the gradients that clipping, which comes next, has not touched yet."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % every == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/grad_norm", get_total_norm(gradients))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch the memory."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the memory."""
        size: int | None
        if pl_module.device.type == "cuda":
            name, size = "train/gpu_memory_gib", torch.cuda.max_memory_allocated(pl_module.device)
        else:
            name, size = "train/memory_gib", _peak_resident_bytes()
        if size is not None:
            pl_module.log(name, size / 2**30, sync_dist=True, reduce_fx="max")

    # ---- pictures and tables -------------------------------------------------------------------------------

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a validation."""
        if trainer.state.fn == "validate":
            self._finish(trainer, cast(Engine, pl_module), "val")
            return
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._send(trainer, cast(Engine, pl_module), "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a test, and keep the numbers of the filters."""
        self._finish(trainer, cast(Engine, pl_module), "test")

    def _finish(self, trainer: pl.Trainer, pl_module: Engine, stage: str) -> None:
        energies = self._send(trainer, pl_module, stage)
        if energies and trainer.is_global_zero:
            write_json(run_folder() / FILTERS, energies)

    def _send(self, trainer: pl.Trainer, pl_module: Engine, stage: str) -> dict[str, Any]:
        """Show what was found to all loggers that can; what filters.json has."""
        # No collective operation from here on: the other processes do not take part.
        if not trainer.is_global_zero:
            return {}
        loggers = [x for x in trainer.loggers if isinstance(x, (WandbLogger, TensorBoardLogger))]
        if not loggers and trainer.state.fn == "fit":
            return {}
        indices, clips = self._read_clips(trainer, stage)
        energies = _energies(trainer, pl_module, clips)
        if loggers:
            show = _show(trainer, pl_module, stage, indices, clips, energies)
            for logger in loggers:
                send = _to_wandb if isinstance(logger, WandbLogger) else _to_tensorboard
                send(logger, show, trainer)
        return energies

    def _read_clips(self, trainer: pl.Trainer, stage: str) -> tuple[list[int], list[np.ndarray]]:
        """The first views of a few sound videos, spread over the split: numbers, (T, S, S, 3) uint8."""
        loader: Any = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        result = cast(Engine, trainer.lightning_module).results[stage]
        sound = result.video_index[result.sound]
        indices, clips = [], []
        for index in sound[spread(len(sound), self.num_clips)].tolist():
            sample = loader.dataset[index]
            # It was readable a moment ago; a file system may have its own ideas.
            if not sample["error"]:
                indices.append(index)
                clips.append(sample["video"][0].numpy())
        return indices, clips


def _energies(trainer: pl.Trainer, pl_module: Engine, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """What filters.json has: :class:`Dashboard` says how."""
    network: Any = pl_module.network
    if not clips or not temporal_layers(network):
        return {}
    data = trainer.datamodule  # type: ignore[attr-defined]
    total: dict[str, torch.Tensor] = {}
    found: dict[str, Maps] = {}
    # One clip at a time: no more memory than a training step of one.
    for clip in clips:
        video = torch.from_numpy(clip).permute(3, 0, 1, 2).unsqueeze(0).to(pl_module.device)
        video = trainer.precision_plugin.convert_input(data.view.normalize(video))
        with trainer.precision_plugin.forward_context():
            found = layer_maps(network, video)
        for name, maps in found.items():
            total[name] = total.get(name, 0) + maps.values.double().mean(dim=(0, 2, 3)) / len(clips)
    return {
        name: {"over": maps.over, "energies": dict(zip(maps.labels, total[name].tolist(), strict=True))}
        for name, maps in found.items()
    }


def _show(
    trainer: pl.Trainer,
    pl_module: Engine,
    stage: str,
    indices: Sequence[int],
    clips: Sequence[np.ndarray],
    energies: dict[str, Any],
) -> Show:
    result, data = pl_module.results[stage], trainer.datamodule  # type: ignore[attr-defined]
    # A test is that of the best epoch.
    when = f", epoch {trainer.current_epoch + 1}" if trainer.state.fn == "fit" else ""
    headline = pl_module.task.headline()
    value = headline.format(result.metrics[headline.name], 1)
    shown = result.show(data, f"{stage}{when}, {headline.title} {value}")
    heading = f"temporal filters{when}, {len(clips)} clips of {stage}"
    return Show(
        stage=stage,
        result=shown,
        clips=[
            Clip(frames, result.caption(data, index)) for index, frames in zip(indices, clips, strict=True)
        ],
        filters={
            over: pictures.to_array(pictures.filters_figure(layers, over, heading))
            for over, layers in pictures.layers_by_map(energies).items()
        },
        weights={
            f"{kind}/{name.removeprefix('backbone.')}": parameter.detach().float().cpu()
            for name, layer in temporal_layers(pl_module.network).items()
            for kind, parameter in layer.watched().items()
        },
    )


def _to_wandb(logger: Logger, show: Show, trainer: pl.Trainer) -> None:
    import wandb

    stage = show.stage
    found: dict[str, Any] = {
        **{f"{stage}/{name}": wandb.Image(picture) for name, picture in show.result.pictures.items()},
        **{
            f"{stage}/{name}": wandb.Table(columns=list(head), data=[list(row) for row in rows])
            for name, (head, rows) in show.result.tables.items()
        },
    }
    if show.clips:
        found[f"{stage}/clips"] = [
            wandb.Video(
                io.BytesIO(pictures.encode_mp4(pictures.enlarged(clip.frames), FRAMES_PER_SECOND)),
                caption=clip.caption,
                format="mp4",
            )
            for clip in show.clips
        ]
    found |= {f"filters/{over}": wandb.Image(picture) for over, picture in show.filters.items()}
    for name, values in show.weights.items():
        found[f"filters/{name}"] = wandb.Histogram(values.flatten().tolist())
    steps = {"trainer/global_step": trainer.global_step, "epoch": trainer.current_epoch}
    logger.experiment.log(found | steps)  # type: ignore[attr-defined]


def _to_tensorboard(logger: Logger, show: Show, trainer: pl.Trainer) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer: Any = logger.experiment  # type: ignore[attr-defined]
    stage, step = show.stage, trainer.global_step
    for name, picture in show.result.pictures.items():
        writer.add_image(f"{stage}/{name}", picture, step, dataformats="HWC")
    for name, (head, rows) in show.result.tables.items():
        writer.add_text(f"{stage}/{name}", _markdown(head, rows), step)
    captions = [(number, clip.caption) for number, clip in enumerate(show.clips)]
    if captions:
        writer.add_text(f"{stage}/clips", _markdown(("clip", "what it is"), captions), step)
    for number, clip in enumerate(show.clips):
        frames = pictures.enlarged(clip.frames)
        # What SummaryWriter.add_video writes, without the packages that it needs to make a GIF.
        image = Summary.Image(
            height=frames.shape[1],
            width=frames.shape[2],
            colorspace=3,
            encoded_image_string=pictures.encode_gif(frames, FRAMES_PER_SECOND),
        )
        summary = Summary(value=[Summary.Value(tag=f"{stage}/clips/{number}", image=image)])
        writer.file_writer.add_summary(summary, step)
    for over, picture in show.filters.items():
        writer.add_image(f"filters/{over}", picture, step, dataformats="HWC")
    for name, values in show.weights.items():
        writer.add_histogram(f"filters/{name}", values, step)
    writer.flush()


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown. Names come from files: what could be markup is shown as it is."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = printable(f"{value:.1%}" if isinstance(value, float) else str(value))
        return "".join(f"&#{ord(c)};" if c in "\\`*_{}[]<>()#+-.!|~&$" else c for c in text)

    lines = [head, ["---"] * len(head), *([cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _peak_resident_bytes() -> int | None:
    """The most memory that this process has had so far; None where that cannot be asked (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
