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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import FileNames, number, parse_options, run_command, seconds, yes_or_no
from dtf.text import cell, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from dtf.apply.predictor import Prediction, Predictor


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
    from dtf.view.predictions import open_csv, progress_bars, record_of, show, write_files

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
        with progress_bars(console) as progress, open_csv(folder / "predictions.csv") as file:
            rows = csv.writer(file)
            top = min(request.top, len(predictor.class_names))
            rows.writerow(
                ["video", "error", *(f"{k}_{i}" for i in range(1, top + 1) for k in ("class", "score"))]
            )
            for prediction in _predictions(predictor, videos, request, progress):
                record = record_of(prediction)
                if prediction.error:
                    print(f"error: {record['error']}", file=sys.stderr)
                else:
                    try:
                        write_files(
                            folder,
                            names.stem(prediction.video),
                            prediction,
                            record,
                            predictor.class_names,
                            progress,
                            top=request.top,
                            picture=request.picture,
                            video=request.video,
                            max_read_seconds=request.max_read_seconds,
                        )
                    except VideoError as error:
                        # The video was classified; only its copy is missing.
                        record["error"] = str(error)
                        print(f"error: {printable(str(error))}", file=sys.stderr)
                    show(console, folder, predictor, prediction, record)
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


if __name__ == "__main__":
    sys.exit(main())
