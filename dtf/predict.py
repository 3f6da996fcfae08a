"""Classify video files with a trained network.

    python -m dtf.predict VIDEO... checkpoint=PATH [views=3x1] [output=DIR] [top=5] [device=cpu]

`checkpoint` is a .ckpt of train.py or a .safetensors file (`model.safetensors` of a run). It says everything
else: network, class names, clip length, sampling, sizes, normalisation. For each video the best classes are
printed, and drawn below the frames that the network saw; OUTPUT/predictions.json has them all. A file that
cannot be read is named, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.lit.command import nearest, one_line_errors

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from dtf.data.datamodule import VideoDataModule

OPTIONS = {"checkpoint": "", "views": "", "output": "predictions", "top": "5", "device": "auto"}
FRAMES_DRAWN = 8


@dataclass(frozen=True)
class Prediction:
    """What a network says about one video.

    Attributes:
        video: path as given.
        error: why the video could not be read, "" where it could.
        classes: best classes, best first.
        scores: their softmax scores, averaged over views, in 0..1.
        frames: (T, S, S, 3) uint8, the first view, None for a broken video.
    """

    video: str
    error: str
    classes: list[str]
    scores: list[float]
    frames: np.ndarray | None


class Predictor:
    """A trained network with all that it takes to apply it to a video file.

    Args:
        checkpoint: a .ckpt file of train.py or a .safetensors file.
        views: "NxM" clips x crops; "": as the network was tested.
        device: "cpu", "cuda", ... or "auto" (a GPU where there is one).

    Attributes:
        network: in evaluation mode, on `device`.
        class_names: C names.

    Raises:
        ValueError: the file is missing, damaged or not ours, or a setting is wrong.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], views: str = "", device: str = "auto") -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={device}: torch {torch.__version__} sees no GPU here")
        network, self.class_names, settings = _load(Path(checkpoint))
        self.network = network.to(self.device).eval()
        self._data = _build_data(settings, views, Path(checkpoint))

    def __call__(self, video: str | os.PathLike[str], top: int = 5) -> Prediction:
        """Classify a video file.

        Args:
            video: its path.
            top: how many classes.
        """
        import torch

        from dtf.data.dataset import EvalDataset
        from dtf.data.lists import VideoIndex
        from dtf.data.transforms import normalize

        data = self._data
        index = VideoIndex(os.sep, [os.path.abspath(video)], [0])
        sample = EvalDataset(index, data.frame_samplers["test"], data.test_transform, data.num_clips)[0]
        if sample["error"]:
            return Prediction(os.fspath(video), sample["error"], [], [], None)
        total = torch.zeros(len(self.class_names), dtype=torch.float64)
        views_VTHWC = sample["video"]
        # A few views at a time: 10 x 3 views of a large network need not fit into memory at once.
        with torch.inference_mode():
            for part in views_VTHWC.split(4):
                clips = normalize(part.permute(0, 4, 1, 2, 3).to(self.device), data.mean, data.std)
                total += self.network(clips).float().softmax(dim=1).double().sum(dim=0).cpu()
        scores, order = (total / len(views_VTHWC)).sort(descending=True, stable=True)
        return Prediction(
            video=os.fspath(video),
            error="",
            classes=[self.class_names[i] for i in order[:top].tolist()],
            scores=scores[:top].tolist(),
            frames=views_VTHWC[0].numpy(),
        )


def _load(path: Path) -> tuple[nn.Module, list[str], dict[str, Any]]:
    """Network, class names and data settings of a weights file of either kind."""
    from dtf.lit.checkpoint import load_checkpoint
    from dtf.models import load_weights

    if path.suffix != ".safetensors":
        checkpoint = load_checkpoint(path)
        return checkpoint.build_network(), checkpoint.class_names, checkpoint.data
    network, metadata = load_weights(path)
    missing = [key for key in ("class_names", "data") if key not in metadata]
    if missing:
        raise ValueError(f"{path} does not say its {' and '.join(missing)}: it was not written by train.py")
    return network, metadata["class_names"], metadata["data"]


def _build_data(settings: dict[str, Any], views: str, path: Path) -> VideoDataModule:
    """A data module that is only asked for its sampling and its transform."""
    from dtf.data.datamodule import VideoDataModule
    from dtf.lit.stored import CLIP_KEYS

    missing = [key for key in CLIP_KEYS if key not in settings]
    if missing:
        raise ValueError(
            f"{path} does not say data.{', data.'.join(missing)}: it was not written by train.py"
        )
    chosen = {key: settings[key] for key in CLIP_KEYS}
    test_views = views or settings.get("test_views", "1x1")
    return VideoDataModule(root=".", num_workers=0, test_views=test_views, **chosen)


def draw(path: Path, prediction: Prediction) -> None:
    """Draw the frames that the network saw above the bars of its best classes, as PNG."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert prediction.frames is not None
    frames = prediction.frames
    shown = frames[np.unique(np.linspace(0, len(frames) - 1, FRAMES_DRAWN).round().astype(int))]
    strip = np.concatenate(list(shown), axis=1)
    num_classes = len(prediction.classes)
    figure = Figure(figsize=(9, 9 / len(shown) + 0.6 + 0.35 * num_classes), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[9 / len(shown), 0.3 + 0.35 * num_classes])
    top.imshow(strip, aspect="equal")
    top.set_axis_off()
    top.set_title(_printable(os.path.basename(prediction.video)), fontsize=10, parse_math=False)
    places = range(num_classes)
    bottom.barh(places, prediction.scores, color="#4878a8")
    # Names are data: `$` in one must not start a formula.
    bottom.set_yticks(places, [_printable(name) for name in prediction.classes], parse_math=False)
    bottom.invert_yaxis()
    bottom.set_xlim(0, 1.12)
    bottom.set_xticks([0, 0.25, 0.5, 0.75, 1])
    for place, score in zip(places, prediction.scores, strict=True):
        bottom.text(score + 0.01, place, f"{score:.1%}", va="center", fontsize=9)
    for side in ("top", "right"):
        bottom.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode("utf-8"))


def parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command-line arguments as (videos, options).

    Raises:
        ValueError: an unknown option, no video, or no checkpoint.
    """
    videos, options = [], dict(OPTIONS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in OPTIONS:
            options[key] = value
        elif equals and re.fullmatch(r"\w+", key) and not os.path.exists(argument):
            raise ValueError(
                f"there is no option {key}{nearest(key, OPTIONS)} (there are: {', '.join(OPTIONS)})"
            )
        elif argument.startswith("--") and not os.path.exists(argument):
            raise ValueError(f"there is no option {argument}; options are KEY=VALUE: {', '.join(OPTIONS)}")
        else:
            videos.append(argument)
    if not options["checkpoint"]:
        raise ValueError("no checkpoint: add checkpoint=PATH, for example OUTPUT/checkpoints/best.ckpt")
    if not videos:
        raise ValueError("no video: python -m dtf.predict VIDEO... checkpoint=PATH")
    if not (options["top"].isdecimal() and int(options["top"]) >= 1):
        raise ValueError(f"top must be a number of classes, at least 1, got {options['top']!r}")
    return videos, options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        return 0 if arguments else 2
    with one_line_errors():
        return _run(*parse(arguments))
    return 1


def _run(videos: list[str], options: dict[str, str]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dtf.lit.report import write_json

    predictor = Predictor(options["checkpoint"], options["views"], options["device"])
    folder = Path(options["output"])
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    records: list[dict[str, Any]] = []
    taken: set[str] = set()
    failed = 0
    for video in videos:
        prediction = predictor(video, int(options["top"]))
        record: dict[str, Any] = {"video": _printable(video), "error": prediction.error or None}
        record["predictions"] = [
            {"class": name, "score": score}
            for name, score in zip(prediction.classes, prediction.scores, strict=True)
        ]
        if prediction.error:
            failed += 1
            print(f"error: {_printable(prediction.error)}", file=sys.stderr)
        else:
            picture = folder / _picture_name(video, taken)
            draw(picture, prediction)
            record["picture"] = picture.name
            console.print(f"[bold]{escape(_printable(video))}[/bold]", soft_wrap=True)
            table = Table(show_header=False)
            for name, score in zip(prediction.classes, prediction.scores, strict=True):
                table.add_row(escape(_printable(name)), f"{score:6.1%}", "█" * round(20 * score))
            console.print(table)
            console.print(f"picture: {escape(str(picture))}", soft_wrap=True)
        records.append(record)
        # After each video: a run that is cut off keeps what it has.
        write_json(folder / "predictions.json", records)
    if failed:
        print(f"error: {failed} of {len(videos)} videos could not be read", file=sys.stderr)
    return 1 if failed else 0


def _picture_name(video: str, taken: set[str]) -> str:
    """A file name for a video's picture that no other one of this call has."""
    stem = re.sub(r"[^\w.-]+", "_", _printable(Path(video).name)).strip(".") or "video"
    name, count = f"{stem}.png", 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}.png"
    taken.add(name)
    return name


if __name__ == "__main__":
    sys.exit(main())
