"""A trained network with all that it takes to apply it to videos, pictures and arrays in memory.

Shape letters: V views of a video, T frames, S side of the crop, C classes, W windows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dtf.apply.graphs import open_classifier
from dtf.apply.sliding import Window, sliding_views
from dtf.data.clip_view import ClipView
from dtf.data.dataset import EvalDataset, fixed_views, most_workers
from dtf.data.lists import VideoIndex
from dtf.data.memory import ArrayReader
from dtf.data.reader import VideoError
from dtf.data.sampling import parse_views
from dtf.runs.description import ACTIVATIONS

FRAMES_KEPT = 8
"""Frames of a sliding prediction that are kept to be shown."""
_WORKERS_FROM = 8  # fewer videos are read sooner than processes are up

Video = str | os.PathLike[str] | np.ndarray | torch.Tensor
"""A path, or (T, H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one video.

    Attributes:
        video: path as given; "frames in memory" of an array.
        error: why the video could not be read, "" where it could.
        classes: best classes, best first.
        scores: their scores as the network's task has them (softmax where it classifies), averaged over
            views (and windows).
        frames: (n, S, S, 3) uint8: the first view, or one frame of every few windows; None for a broken
            video.
        windows: the W windows of a sliding prediction, else empty.
        window_scores: (W, C) float32 scores of all classes in each window; None without windows.
        warning: what is doubtful about the windows, else "".
    """

    video: str
    error: str
    classes: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    frames: np.ndarray | None = None
    windows: list[Window] = field(default_factory=list)
    window_scores: np.ndarray | None = None
    warning: str = ""


class Predictor:
    """A trained network with all that it takes to apply it.

    A video is a path, of a file, a picture or a folder of frames, or an array (T, H, W, 3) uint8 RGB. Paths
    are read by processes of their own, arrays in this one. A still is a video of one frame, which the network
    sees as often as its clips are long.

    Args:
        checkpoint: a .ckpt, .safetensors, .onnx or .pt2 file.
        views: "NxM" clips x crops of a video or window; "": videos as the network was tested, windows 1x1.
        device: "cpu", "cuda", ... or "auto" (a GPU where there is one).
        trust: whether a .pt2 file, which can run code, may be loaded.
        max_read_seconds: time limit for reading a video, or a window of it; None: none. Linux only.

    Attributes:
        network: in evaluation mode, on `device`; None for an exported graph.
        class_names: C names.
        shares: whether scores lie in 0..1; else they are whatever numbers the network gives.
        view: how it sees a video.
        num_workers: processes that read where there are many videos.

    Raises:
        ValueError: the file is missing, damaged or not ours, or a setting is wrong.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        views: str = "",
        device: str = "auto",
        trust: bool = False,
        max_read_seconds: float | None = 60.0,
    ) -> None:
        self._classifier = open_classifier(Path(checkpoint), device, trust)
        self.network = self._classifier.network
        self.class_names = self._classifier.class_names
        self.shares = self._classifier.activation != "none"
        self.device = self._classifier.device
        self.view = ClipView.from_settings(self._classifier.data)
        self._views = parse_views(views or self._classifier.data.get("test_views", "1x1"))
        self._views_of_windows = parse_views(views or "1x1")
        self.max_read_seconds = max_read_seconds
        self.num_workers = most_workers()
        # 10 x 3 views of a large network need not fit into memory at once.
        self._batch_views = 4 if self.device.type == "cpu" else 16

    def __call__(self, video: Video, top: int = 5, fps: float = 0.0) -> Prediction:
        """Classify a video.

        Args:
            video: path or array.
            top: how many classes.
            fps: of an array; 0: not known.

        Raises:
            ValueError: an array of another type or shape.
        """
        return next(self.each([video], top, fps))

    def each(self, videos: Sequence[Video], top: int = 5, fps: float = 0.0) -> Iterator[Prediction]:
        """Classify videos, in their order; many files are read by several processes.

        Args:
            videos: paths and arrays.
            top: how many classes.
            fps: of the arrays; 0: not known.

        Raises:
            ValueError: an array of another type or shape.
        """
        num_clips, num_crops = self._views
        sampler, crops = self.view.sampler(), self.view.crops(num_crops)
        sources = [_source(video, fps) for video in videos]
        paths = [os.path.abspath(source) for source in sources if isinstance(source, str)]
        index = VideoIndex(os.sep, paths, [0] * len(paths))
        dataset = EvalDataset(index, sampler, crops, num_clips, self.max_read_seconds)
        num_workers = self.num_workers if len(paths) >= _WORKERS_FROM else 0
        samples = iter(DataLoader(dataset, batch_size=None, num_workers=num_workers))
        for source in sources:
            if isinstance(source, str):
                name, sample = source, next(samples)
                views_VTHWC, error = sample["video"], "".join(map(str, sample["error"]))
            else:
                name, error = source.path, ""
                try:
                    views_VTHWC = fixed_views(source, sampler, crops, num_clips)
                except VideoError as fault:
                    error = str(fault)
            if error:
                yield Prediction(name, error)
                continue
            parts = views_VTHWC.split(self._batch_views)
            scores = torch.cat([self._scores(part) for part in parts]).mean(dim=0)
            yield self._prediction(name, scores, top, views_VTHWC[0].numpy())

    def slide(
        self,
        video: Video,
        window_seconds: float,
        stride_seconds: float,
        top: int = 5,
        on_window: Callable[[int, int], None] | None = None,
        fps: float = 0.0,
    ) -> Prediction:
        """Classify every window of a video, of any length.

        Args:
            video: path of a file, or array.
            window_seconds, stride_seconds: see `dtf.apply.sliding.slide`.
            top: how many classes; those of the mean over windows.
            on_window: called with (windows done, windows).
            fps: of an array, which needs it here.

        Raises:
            ValueError: an array of another type or shape.
        """
        num_clips, num_crops = self._views_of_windows
        source = _source(video, fps)
        name = source if isinstance(source, str) else source.path
        frames: dict[int, np.ndarray] = {}
        batch: dict[int, torch.Tensor] = {}
        done = 0
        try:
            windows, span, views_of_windows = sliding_views(
                source,
                window_seconds,
                stride_seconds,
                self.view.sampler(),
                self.view.crops(num_crops),
                num_clips,
                self.max_read_seconds,
            )
            scores = np.empty((len(windows), len(self.class_names)), np.float32)
            drawn = np.linspace(0, len(windows) - 1, FRAMES_KEPT).round().astype(int).tolist()

            def classify() -> None:
                views = torch.cat(list(batch.values()))
                parts = torch.cat([self._scores(part) for part in views.split(self._batch_views)])
                scores[list(batch)] = parts.unflatten(0, (len(batch), -1)).mean(dim=1).numpy()
                batch.clear()

            for w, views in views_of_windows:
                if w in drawn:
                    frames[w] = views[len(views) // 2, views.shape[1] // 2].numpy().copy()
                batch[w] = views
                if len(batch) * len(views) >= self._batch_views:
                    classify()
                done += 1
                if on_window is not None:
                    on_window(done, len(windows))
            if batch:
                classify()
        except VideoError as error:
            return Prediction(name, str(error))
        mean = torch.from_numpy(scores).double().mean(dim=0)
        strip = np.stack([frames[w] for w in drawn])
        warning = ""
        if span > 1.01 * window_seconds:
            warning = (
                f"a clip of this network spans {span:.2f} s: windows of {window_seconds:g} s repeat frames"
            )
        return self._prediction(name, mean, top, strip, windows, scores, warning)

    def score(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, C) float32 outputs of the network -> (B, C) scores."""
        return ACTIVATIONS[self._classifier.activation](outputs)

    def shown(self, score: float) -> str:
        """A score for people."""
        return f"{score:.1%}" if self.shares else f"{score:.4g}"

    def _scores(self, views: torch.Tensor) -> torch.Tensor:
        """(V, T, S, S, 3) uint8 -> (V, C) float64 scores."""
        return self.score(self._classifier.logits(views)).double()

    def _prediction(
        self, name: str, scores: torch.Tensor, top: int, frames: np.ndarray, *windows: Any
    ) -> Prediction:
        best, order = scores.sort(descending=True, stable=True)
        classes = [self.class_names[i] for i in order[:top].tolist()]
        return Prediction(name, "", classes, best[:top].tolist(), frames, *windows)


def _source(video: Video, fps: float) -> str | ArrayReader:
    """A path as text, or the reader of an array."""
    return os.fspath(video) if isinstance(video, str | os.PathLike) else ArrayReader(video, fps)
