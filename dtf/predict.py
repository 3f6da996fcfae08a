"""Classify video files and pictures with a trained network.

    python -m dtf.predict VIDEO|PICTURE|FOLDER... checkpoint=PATH [views=3x1] [top=5] [output=predictions]
                          [window=2.0 [stride=1.0]] [video=true] [picture=false] [device=cpu]
                          [max_read_seconds=60]

`checkpoint` is a .ckpt of train.py, a .safetensors file (`model.safetensors` of a run), or a .onnx or .pt2
file of `python -m dtf.export`. It says everything else: network, class names, clip length, sampling, sizes,
normalisation. (.pt2 files can run code when loaded; trust=true says that this one may.)

For each video the best classes are printed, and drawn below frames that the network saw. A picture is a video
that stands still. Of a folder all videos in it and below are taken, by a network for single frames the
pictures too. With `window`, in seconds, a window of that length slides over the video by `stride` seconds
(half a window unless given): the picture then has the scores over time. `video=true` writes a copy of each
video with classes and bars burnt in.
OUTPUT gets

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
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import FileNames, number, parse_options, run_command, seconds, yes_or_no
from dtf.text import cell, markup, printable

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

    from dtf.apply.predictor import Prediction, Predictor
    from dtf.apply.sliding import Window


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
NO_SHARES = "scores that are any numbers, as its task says: activation none"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", lambda given: _run(parse(given)), arguments)


def _run(request: Request) -> int:
    from rich.console import Console

    from dtf.apply.predictor import Predictor
    from dtf.data.decode import VideoError
    from dtf.data.lists import find_videos
    from dtf.files import write_json

    predictor = Predictor(
        request.checkpoint, request.views, request.device, request.trust, request.max_read_seconds
    )
    if request.video and not predictor.shares:
        raise ValueError(f"video=true shows bars of shares, and {request.checkpoint} has {NO_SHARES}")
    if request.picture and not predictor.shares:
        print(f"no pictures: {request.checkpoint} has {NO_SHARES}")
        request = replace(request, picture=False)
    videos = find_videos(request.files, pictures=predictor.view.clip_length == 1)
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
                    _show(console, folder, predictor, prediction, record)
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
        about["windows"] = _write_timeline(folder / about["timeline"], windows, best)
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


def _write_timeline(
    path: Path, windows: Sequence[Window], best: Sequence[list[tuple[str, float]]]
) -> list[dict[str, Any]]:
    """Write the best classes of every window as CSV; returns the same for predictions.json."""
    with _open_csv(path) as file:
        rows = csv.writer(file)
        rows.writerow(["start", "end", "class", "score"])
        for window, caption in zip(windows, best, strict=True):
            for name, score in caption:
                rows.writerow([f"{window.start:.3f}", f"{window.end:.3f}", cell(name), f"{score:.6f}"])
    return [
        {
            "start": round(window.start, 3),
            "end": round(window.end, 3),
            "predictions": [{"class": name, "score": score} for name, score in caption],
        }
        for window, caption in zip(windows, best, strict=True)
    ]


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


def _show(
    console: Any, folder: Path, predictor: Predictor, prediction: Prediction, record: dict[str, Any]
) -> None:
    from rich.table import Table

    from dtf.view.annotate import clock

    console.print(f"[bold]{markup(record['video'])}[/bold]", soft_wrap=True)
    table = Table(show_header=False)
    for name, score in zip(prediction.classes, prediction.scores, strict=True):
        bar = "█" * round(20 * score) if predictor.shares else ""
        table.add_row(markup(name), f"{predictor.shown(score):>6}", bar)
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
