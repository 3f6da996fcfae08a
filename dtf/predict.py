"""Classify video files with a trained network.

    python -m dtf.predict VIDEO|FOLDER... checkpoint=PATH [views=3x1] [top=5] [output=predictions]
                          [window=2.0 [stride=1.0]] [video=true] [picture=false] [device=cpu]
                          [max_read_seconds=60]

`checkpoint` is a .ckpt of train.py, a .safetensors file (`model.safetensors` of a run), or a .onnx or .pt2
file of `python -m dtf.export`. It says everything else: network, class names, clip length, sampling, sizes,
normalisation. (.pt2 files can run code when loaded; trust=true says that this one may.)

For each video the best classes are printed, and drawn below frames that the network saw. Of a folder all
videos in it and below are taken. With `window`, in seconds, a window of that length slides over the video by
`stride` seconds (half a window unless given): the picture then has the scores over time. `video=true` writes
a copy of each video with classes and bars burnt in. OUTPUT gets

    predictions.csv     a line for each video, written as soon as it is done
    predictions.json    the same, with the windows
    NAME.png            the picture
    NAME.timeline.csv   start,end,class,score: the best classes of every window
    NAME.annotated.mp4  the annotated video

A video that cannot be read is named, the others go on, and the exit code is 1. So is one that takes longer
than `max_read_seconds` to open and read (with `window`: to open, or from one window to the next), or that
crashes its decoder.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import FileNames, number, parse_options, run_command, seconds, yes_or_no
from dtf.text import cell, markup, printable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.progress import Progress

    from dtf.apply.sliding import Window
    from dtf.data.datamodule import VideoDataModule

OPTIONS = {
    "checkpoint": "",
    "views": "",
    "top": "5",
    "output": "predictions",
    "window": "",
    "stride": "",
    "video": "false",
    "picture": "true",
    "device": "auto",
    "trust": "false",
    "max_read_seconds": "60",
}
_WORKERS_FROM = 8  # fewer videos are read sooner than processes are up


@dataclass(frozen=True)
class Prediction:
    """What a network says about one video.

    Attributes:
        video: path as given.
        error: why the video could not be read, "" where it could.
        classes: best classes, best first.
        scores: their softmax scores, averaged over views (and windows), in 0..1.
        frames: (n, S, S, 3) uint8: the first view, or one frame of every few windows; None for a broken
            video.
        windows: the W windows of a sliding prediction, else empty.
        window_scores: (W, C) float32 softmax scores of all classes in each window; None without windows.
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
    """A trained network with all that it takes to apply it to a video file.

    Args:
        checkpoint: a .ckpt, .safetensors, .onnx or .pt2 file.
        views: "NxM" clips x crops of a video or window; "": videos as the network was tested, windows 1x1.
        device: "cpu", "cuda", ... or "auto" (a GPU where there is one).
        trust: whether a .pt2 file, which can run code, may be loaded.
        max_read_seconds: time limit for reading a video, or a window of it; None: none. Linux only.

    Attributes:
        network: in evaluation mode, on `device`; None for an exported graph.
        class_names: C names.

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
        from dtf.apply.graphs import open_classifier

        self._classifier = open_classifier(Path(checkpoint), device, trust)
        self.network = self._classifier.network
        self.class_names = self._classifier.class_names
        self.device = self._classifier.device
        self._data = _build_data(self._classifier.data, views)
        self._window_data = _build_data(self._classifier.data, views or "1x1")
        self.max_read_seconds = max_read_seconds
        # 10 x 3 views of a large network need not fit into memory at once.
        self._batch_views = 4 if self.device.type == "cpu" else 16

    def __call__(self, video: str | os.PathLike[str], top: int = 5) -> Prediction:
        """Classify a video.

        Args:
            video: path of a file, or of a folder of frames.
            top: how many classes.
        """
        return next(self.each([video], top))

    def each(self, videos: Sequence[str | os.PathLike[str]], top: int = 5) -> Iterator[Prediction]:
        """Classify videos, in their order; many are read by processes of their own.

        Args:
            videos: paths.
            top: how many classes.
        """
        import torch
        from torch.utils.data import DataLoader

        from dtf.data.dataset import EvalDataset
        from dtf.data.lists import VideoIndex

        data = self._data
        paths = [os.path.abspath(video) for video in videos]
        dataset = EvalDataset(
            VideoIndex(os.sep, paths, [0] * len(paths)),
            data.frame_samplers["test"],
            data.test_transform,
            data.num_clips,
            self.max_read_seconds,
        )
        num_workers = data.num_workers if len(paths) >= _WORKERS_FROM else 0
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        for video, sample in zip(videos, loader, strict=True):
            if sample["error"]:
                yield Prediction(os.fspath(video), str(sample["error"][0]))
                continue
            views_VTHWC = sample["video"]
            parts = views_VTHWC.split(self._batch_views)
            scores = torch.cat([self._scores(part) for part in parts]).mean(dim=0)
            yield self._prediction(video, scores, top, views_VTHWC[0].numpy())

    def slide(
        self,
        video: str | os.PathLike[str],
        window_seconds: float,
        stride_seconds: float,
        top: int = 5,
        on_window: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Classify every window of a video, of any length.

        Args:
            video: path of a file.
            window_seconds, stride_seconds: see `dtf.apply.sliding.slide`.
            top: how many classes; those of the mean over windows.
            on_window: called with (windows done, windows).
        """
        import numpy as np
        import torch

        from dtf.apply.sliding import read_isolated
        from dtf.data.decode import VideoError
        from dtf.view.annotate import FRAMES_DRAWN

        data = self._window_data
        name = os.fspath(video)
        frames: dict[int, np.ndarray] = {}
        batch: dict[int, torch.Tensor] = {}
        done = 0
        try:
            windows, span, views_of_windows = read_isolated(
                name,
                window_seconds,
                stride_seconds,
                data.frame_samplers["test"],
                data.test_transform,
                data.num_clips,
                self.max_read_seconds,
            )
            scores = np.empty((len(windows), len(self.class_names)), np.float32)
            drawn = np.linspace(0, len(windows) - 1, FRAMES_DRAWN).round().astype(int).tolist()

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
        return self._prediction(video, mean, top, strip, windows, scores, warning)

    def _scores(self, views: torch.Tensor) -> torch.Tensor:
        """(V, T, S, S, 3) uint8 -> (V, C) float64 softmax scores."""
        return self._classifier.logits(views).softmax(dim=1).double()

    def _prediction(
        self, video: str | os.PathLike[str], scores: torch.Tensor, top: int, frames: np.ndarray, *windows: Any
    ) -> Prediction:
        best, order = scores.sort(descending=True, stable=True)
        classes = [self.class_names[i] for i in order[:top].tolist()]
        return Prediction(os.fspath(video), "", classes, best[:top].tolist(), frames, *windows)


def _build_data(settings: dict[str, Any], views: str) -> VideoDataModule:
    """A data module that is only asked for its sampling and its transform."""
    from dtf.data.datamodule import VideoDataModule
    from dtf.runs.description import CLIP_KEYS

    chosen = {key: settings[key] for key in CLIP_KEYS}
    return VideoDataModule(root=".", test_views=views or settings.get("test_views", "1x1"), **chosen)


# -------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Request:
    """What the command line asks for: `files` as given, the rest as the options of the same names."""

    files: list[str]
    checkpoint: str
    views: str
    top: int
    output: str
    window: float | None
    stride: float
    video: bool
    picture: bool
    device: str
    trust: bool
    max_read_seconds: float | None


def parse(arguments: Sequence[str]) -> Request:
    """Command-line arguments.

    Raises:
        ValueError: an unknown option, a wrong value, no video, or no checkpoint.
    """
    files, options = parse_options(arguments, OPTIONS)
    if not options["checkpoint"]:
        raise ValueError("no checkpoint: add checkpoint=PATH, for example OUTPUT/checkpoints/best.ckpt")
    if not files:
        raise ValueError("no video: python -m dtf.predict VIDEO... checkpoint=PATH")
    window = seconds(options, "window")
    if options["stride"] and window is None:
        raise ValueError("stride has no effect without window: add window=SECONDS")
    return Request(
        files=files,
        checkpoint=options["checkpoint"],
        views=options["views"],
        top=number(options, "top", 1, "classes"),
        output=options["output"],
        window=window,
        stride=seconds(options, "stride") or (window or 0.0) / 2,
        video=yes_or_no(options, "video"),
        picture=yes_or_no(options, "picture"),
        device=options["device"],
        trust=yes_or_no(options, "trust"),
        max_read_seconds=seconds(options, "max_read_seconds"),
    )


def find_videos(files: Sequence[str]) -> list[str]:
    """The files as given, each folder replaced by the videos in it and below, sorted by path.

    Hidden files and folders are left out, links to folders are not followed, and links to files only where
    they stay inside the folder. A folder without videos stays: it may be one of frames, which is a video.
    """
    from dtf.data.lists import is_video_name

    found = []
    for file in files:
        if not os.path.isdir(file):
            found.append(file)
            continue
        inside = []
        root = os.path.realpath(file)
        for folder, subfolders, names in os.walk(file):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                target = os.path.realpath(path)
                if is_video_name(name) and target.startswith(os.path.join(root, "")):
                    inside.append(path)
        found.extend(sorted(inside) or [file])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", lambda given: _run(parse(given)), arguments)


def _run(request: Request) -> int:
    from rich.console import Console

    from dtf.data.decode import VideoError
    from dtf.lit.report import write_json

    predictor = Predictor(
        request.checkpoint, request.views, request.device, request.trust, request.max_read_seconds
    )
    videos = find_videos(request.files)
    folder = Path(request.output)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    records: list[dict[str, Any]] = []
    names = FileNames()
    try:
        with _progress(console) as progress, _open_csv(folder / "predictions.csv") as file:
            rows = csv.writer(file)
            top = min(request.top, len(predictor.class_names))
            rows.writerow(
                ["video", "error", *(f"{k}_{i}" for i in range(1, top + 1) for k in ("class", "score"))]
            )
            for prediction in _predictions(predictor, videos, request, progress):
                record = _record(prediction)
                if prediction.error:
                    print(f"error: {record['error']}", file=sys.stderr)
                else:
                    try:
                        _write_files(
                            folder, prediction, record, predictor.class_names, request, names, progress
                        )
                    except VideoError as error:
                        # The video was classified; only its copy is missing.
                        record["error"] = str(error)
                        print(f"error: {printable(str(error))}", file=sys.stderr)
                    _show(console, folder, prediction, record)
                records.append(record)
                best = [x for p in record["predictions"] for x in (cell(p["class"]), f"{p['score']:.6f}")]
                rows.writerow([cell(record["video"]), cell(record["error"] or ""), *best])
                file.flush()
    finally:
        # A run that is cut off keeps what it has.
        write_json(folder / "predictions.json", records)
    failed = sum(bool(record["error"]) for record in records)
    unread = sum(not record["predictions"] for record in records)
    if unread:
        print(f"error: {unread} of {len(videos)} videos could not be read", file=sys.stderr)
    return 1 if failed else 0


def _predictions(
    predictor: Predictor, videos: list[str], request: Request, progress: Progress
) -> Iterator[Prediction]:
    task = progress.add_task("videos", total=len(videos), visible=len(videos) > 1)
    if request.window is None:
        for prediction in predictor.each(videos, request.top):
            yield prediction
            progress.advance(task)
        return
    warned = False
    for video in videos:
        windows = progress.add_task("windows", total=None)

        def show(done: int, total: int, task: Any = windows) -> None:
            progress.update(task, completed=done, total=total)

        prediction = predictor.slide(video, request.window, request.stride, request.top, show)
        if prediction.warning and not warned:
            print(f"warning: {printable(prediction.warning)}", file=sys.stderr)
            warned = True
        yield prediction
        progress.remove_task(windows)
        progress.advance(task)


def _record(prediction: Prediction) -> dict[str, Any]:
    """The entry of predictions.json."""
    return {
        "video": printable(prediction.video),
        "error": printable(prediction.error) or None,
        "predictions": [
            {"class": name, "score": score}
            for name, score in zip(prediction.classes, prediction.scores, strict=True)
        ],
    }


def _write_files(
    folder: Path,
    prediction: Prediction,
    about: dict[str, Any],
    class_names: Sequence[str],
    request: Request,
    names: FileNames,
    progress: Progress,
) -> None:
    """Picture, timeline and annotated video; `about`, the entry of predictions.json, gets each that is there.

    Raises:
        VideoError: the annotated video cannot be written.
    """
    from dtf.view.annotate import draw_prediction, draw_timeline, write_annotated

    stem = names.stem(prediction.video)
    overall = list(zip(prediction.classes, prediction.scores, strict=True))
    windows, scores = prediction.windows, prediction.window_scores
    assert prediction.frames is not None
    if scores is not None:
        best = [_best(row, class_names, request.top) for row in scores]
        about["timeline"] = f"{stem}.timeline.csv"
        with _open_csv(folder / about["timeline"]) as file:
            rows = csv.writer(file)
            rows.writerow(["start", "end", "class", "score"])
            for window, caption in zip(windows, best, strict=True):
                for name, score in caption:
                    rows.writerow([f"{window.start:.3f}", f"{window.end:.3f}", cell(name), f"{score:.6f}"])
        about["windows"] = [
            {
                "start": round(window.start, 3),
                "end": round(window.end, 3),
                "predictions": [{"class": name, "score": score} for name, score in caption],
            }
            for window, caption in zip(windows, best, strict=True)
        ]
    if request.picture:
        about["picture"] = f"{stem}.png"
        path = folder / about["picture"]
        if scores is None:
            draw_prediction(path, prediction.video, prediction.frames, overall)
        else:
            draw_timeline(
                path, prediction.video, windows, scores, class_names, prediction.frames, request.top
            )
    if request.video:
        from dtf.data.isolated import IsolatedReader

        centres = [window.centre for window in windows]

        def caption_at(seconds: float) -> list[tuple[str, float]]:
            return best[_nearest(centres, seconds)] if centres else overall

        reader = IsolatedReader(prediction.video, request.max_read_seconds)
        task = progress.add_task("annotated video", total=reader.num_frames)
        copy = f"{stem}.annotated.mp4"
        try:
            write_annotated(folder / copy, reader, caption_at, lambda: progress.advance(task))
        finally:
            progress.remove_task(task)
        about["annotated"] = copy


def _open_csv(path: Path) -> Any:
    return open(path, "w", encoding="utf-8", newline="")


def _best(scores: np.ndarray, class_names: Sequence[str], top: int) -> list[tuple[str, float]]:
    order = (-scores).argsort(kind="stable")[:top]
    return [(class_names[i], float(scores[i])) for i in order.tolist()]


def _nearest(sorted_values: list[float], value: float) -> int:
    from bisect import bisect

    place = bisect(sorted_values, value)
    if place in (0, len(sorted_values)):
        return min(place, len(sorted_values) - 1)
    return place if sorted_values[place] - value < value - sorted_values[place - 1] else place - 1


def _show(console: Any, folder: Path, prediction: Prediction, record: dict[str, Any]) -> None:
    from rich.table import Table

    from dtf.view.annotate import clock

    console.print(f"[bold]{markup(record['video'])}[/bold]", soft_wrap=True)
    table = Table(show_header=False)
    for name, score in zip(prediction.classes, prediction.scores, strict=True):
        table.add_row(markup(name), f"{score:6.1%}", "█" * round(20 * score))
    console.print(table)
    if prediction.windows:
        end = clock(prediction.windows[-1].end)
        console.print(f"mean of {len(prediction.windows)} windows from 0 to {end}")
    for key in ("picture", "timeline", "annotated"):
        if key in record:
            console.print(f"{key}: {markup(folder / record[key])}", soft_wrap=True)


@contextmanager
def _progress(console: Any) -> Iterator[Progress]:
    """Bars on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stderr=sys.stderr.isatty(),
    ) as progress:
        yield progress


if __name__ == "__main__":
    sys.exit(main())
