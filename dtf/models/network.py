"""A video network: an image backbone run on frames that are folded into the batch.

Letters: B clips, k frames that a step joins, T steps, H x W pixels. Folded frames are (B*T, 3*k, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dtf.models.stems import Tubelets


def recomputed(block: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """Calls ``run(*inputs)``, which runs ``block``, and keeps its inputs alone for the backward pass."""
    if torch.compiler.is_compiling():
        # The compiler recomputes values, not side effects, and takes no contexts.
        return checkpoint(run, *inputs, use_reentrant=False)
    contexts = lambda: (nullcontext(), _Untracked(block))  # noqa: E731
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)


class _Untracked:
    """While it is open, a block's batch norms leave their running statistics as they are.

    By momentum 0: without tracking they would save fewer tensors than the first time, which is an error.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms: list[Any] = [
            m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats
        ]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


class VideoNetwork(nn.Module):
    """An image backbone on folded frames.

    Subclasses define :meth:`sequence`, :meth:`classify` and the attributes that say where their parts are.

    Args:
        backbone: Takes (B*T, 3*k, H, W).
        clip_length: Frames per clip.
        stem: How frames become steps.
        image_size: (H, W) where the backbone accepts only one size, else ``None``.

    Attributes:
        name: Registered name.
        arguments: Plain data; ``create_model(name, **arguments)`` builds this network again.
        stem_weight: Name of the stem's weight in the backbone.
        num_heads: Of several the outputs in training are apart, and in evaluation joined by softmax scores.
    """

    name: str = ""
    backbone: Any
    arguments: dict[str, Any]
    stem_weight: str = ""
    num_heads: int = 1

    def __init__(
        self,
        backbone: nn.Module,
        clip_length: int,
        stem: Tubelets,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.clip_length = clip_length
        self.stem = stem
        self.num_steps = stem.num_steps(clip_length)
        self.image_size = image_size
        self.grad_checkpointing = False
        self.arguments = {}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks keep their inputs alone and are computed again backward.

        Gradients are the same; what is random is drawn alike both times, and batch norm statistics count a
        batch once (timm's own checkpointing counts it twice).
        """
        self.grad_checkpointing = enable

    def sequence(self) -> Iterator[tuple[nn.Module, bool]]:
        """The backbone's features as modules to be called in turn, and whether each is a block."""
        raise NotImplementedError  # abstract: each backbone has its own

    @property
    def recomputes(self) -> bool:
        """Whether blocks keep their inputs alone just now."""
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """(B*T, 3*k, H, W) -> feature map of the backbone."""
        if not self.recomputes:
            return self.backbone.forward_features(frames)
        return self.in_turn(self.sequence(), frames)

    @staticmethod
    def in_turn(modules: Iterable[tuple[nn.Module, bool]], frames: torch.Tensor) -> torch.Tensor:
        """Modules, and whether each is a block, on frames; of blocks the inputs alone are kept."""
        for module, is_block in modules:
            frames = recomputed(module, module, frames) if is_block else module(frames)
        return frames

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        """(B*T, 3*k, H, W) -> what :meth:`forward` gives."""
        raise NotImplementedError  # abstract: each backbone has its own

    @property
    def classifier(self) -> str:
        """Name of the last linear layer in the backbone."""
        raise NotImplementedError  # abstract: each backbone has its own

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Those of all heads."""
        return (self.classifier,)

    @property
    def last_stage(self) -> nn.Module:
        """The stage whose features the network averages for its answer.

        Raises:
            ValueError: There is no one such stage.
        """
        raise ValueError(f"{self.name} does not say which stage its answer rests on")

    def unfold(self, maps: torch.Tensor) -> torch.Tensor:
        """What :attr:`last_stage` gives for B clips -> (B, C, T, h, w)."""
        return maps.unflatten(0, (-1, self.num_steps)).transpose(1, 2)

    def image_state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published weights of the backbone's image network, under the names that the backbone has."""
        return dict(state)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, clip_length, H, W), normalised, floating -> logits (B, num_classes).

        An image is a clip of one frame: with ``clip_length`` 1 also (B, 3, H, W). In training a network with
        several heads gives (B, heads, num_classes), each to be learnt by itself
        (:func:`dtf.models.heads.per_head`).

        Raises:
            ValueError: The video has another rank, channel count, clip length or (Swin) size than the
                network, no pixels, or integers for values.
        """
        if self.clip_length == 1 and video.dim() == 4:
            video = video.unsqueeze(2)
        self.check(video)
        return self.classify(self.stem.fold(video))

    def check(self, video: torch.Tensor) -> None:
        """Refuses a video that the network was not built for; see :meth:`forward`."""
        if video.dim() != 5 or video.shape[1] != 3:
            raise ValueError(f"{self.name}: video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        if not video.is_floating_point():
            raise ValueError(
                f"{self.name}: video must hold normalised floating-point values, got {video.dtype}; subtract "
                "the mean and divide by std of the data first"
            )
        if 0 in video.shape[3:]:
            raise ValueError(f"{self.name}: video must have pixels, got {tuple(video.shape)}")
        if video.shape[2] != self.clip_length:
            raise ValueError(
                f"{self.name}: built for clips of {self.clip_length} frames, got {video.shape[2]}; "
                f"sample {self.clip_length} frames or build it with clip_length={video.shape[2]}"
            )
        if self.image_size is not None and tuple(video.shape[3:]) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"{self.name}: built for frames of {height} x {width} px, got {video.shape[3]} x "
                f"{video.shape[4]}; crop to that size or build it with image_size={list(video.shape[3:])}"
            )
