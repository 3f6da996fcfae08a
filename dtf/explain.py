"""Show where a trained network filtered a clip, at which temporal frequency, and what its answer rests on.

    python -m dtf.explain VIDEO|FOLDER... checkpoint=PATH [block=NAME,...] [class=NAME]
                          [output=explained] [device=auto] [max_read_seconds=60]

For each video, with its central clip as in evaluation, two pictures:

* VIDEO-filters.png: what the temporal layers did, one row per layer, over the clip (dtf.models.layer_maps),
  for instance what they added per temporal frequency. Each map shows amplitudes relative to its own largest
  one, above it is its share of the layer's energy. f cycles per clip are given in Hz of the video's own time.
  `block` names the blocks to draw; without it, the last one of every resolution is drawn; block=all: all.
* VIDEO-gradcam.png: Grad-CAM of the last stage, per step of the network, for the best class or `class`.

OUTPUT/explain.json has the shares of all blocks as numbers. A network without temporal layers gets the
second picture only. A file that cannot be read, or takes longer than `max_read_seconds`, is
named, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import FileNames, parse_options, run_command, seconds
from dtf.text import markup, nearest, printable
from dtf.view.figures import drawable, new_figure, save, spread

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dtf.apply.predictor import Predictor
    from dtf.data.clip_view import ClipView
    from dtf.layers.temporal import Maps
    from dtf.models import VideoNetwork

OPTIONS = {
    "checkpoint": "",
    "block": "",
    "class": "",
    "output": "explained",
    "device": "auto",
    "max_read_seconds": "60",
}
STEPS_DRAWN = 8
NO_LAYERS = "has no temporal layers, so there is no picture of what they did"


@dataclass(frozen=True)
class Clip:
    """One clip of a video, as the network saw it.

    Attributes:
        frames: (T, S, S, 3) uint8.
        indices: (T,) their numbers in the video.
        seconds: (T,) when each frame is shown; None for frames in a folder and pictures, which do not say.
    """

    frames: np.ndarray
    indices: np.ndarray
    seconds: np.ndarray | None

    @property
    def duration(self) -> float:
        """Seconds that the T frames stand for: T times their usual distance; 0 where that is unknown."""
        import numpy as np

        if self.seconds is None or len(self.seconds) < 2:
            return 0.0
        return max(0.0, float(np.median(np.diff(self.seconds)))) * len(self.seconds)

    def time(self, frame: int) -> str:
        """When a frame is shown, as text."""
        return f"frame {self.indices[frame]}" if self.seconds is None else f"{self.seconds[frame]:.2f} s"


def read_clip(view: ClipView, video: str | os.PathLike[str], max_read_seconds: float | None = 60.0) -> Clip:
    """The central clip and crop of a video (a file, a folder of frames, a picture), cut as in a test.

    It is read in a process of its own, which may hang or crash without harm.

    Raises:
        VideoError: it cannot be read, or takes longer than `max_read_seconds` (None: no limit).
    """
    import numpy as np

    from dtf.data.dataset import fixed_views
    from dtf.data.isolated import ReadingProcess
    from dtf.data.storage import open_video

    sampler, transform = view.sampler(), view.crops()
    size, path = transform.crop_px, os.path.abspath(video)
    process = ReadingProcess((1, sampler.clip_length, size, size, 3))

    def read() -> tuple[list[int], list[float] | None]:
        with open_video(path) as reader:
            fixed_views(reader, sampler, transform, out=process.memory.numpy())
            [indices] = sampler.test(reader.num_frames, reader.fps)
            times = reader.frame_seconds
            return indices.tolist(), None if times is None else times[indices].tolist()

    with closing(process):
        (indices, seconds), frames = process.call(path, read, seconds=max_read_seconds)
    times = None if seconds is None else np.array(seconds)
    return Clip(frames[0].numpy(), np.array(indices), times)


def grad_cam(network: VideoNetwork, video: torch.Tensor, label: int) -> torch.Tensor:
    """Grad-CAM in space and time: which features of a network's last stage speak for a class.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017. A channel's weight is the mean gradient of the class's
    logit over all places; here also over all steps, as the networks of this package average over both. For a
    stage followed by a mean and a linear layer (the ResNets) this is that layer's own sum before the mean.

    Args:
        network: in evaluation mode.
        video: (B, 3, clip_length, H, W), normalised.
        label: the class.

    Returns:
        (B, T, h, w) >= 0, in units of the logit times the number of places; 0 where nothing speaks for it.

    Raises:
        ValueError: the network has no one last stage, or it gives no map of features.
    """
    import torch

    kept: list[torch.Tensor] = []
    handle = network.last_stage.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        # Gradients reach the stage even if no weight asks for one.
        with torch.enable_grad():
            logits = network(video.detach().requires_grad_())
            features = kept[-1]
            if not isinstance(features, torch.Tensor) or features.dim() not in (4, 5):
                raise ValueError(
                    "Grad-CAM needs one map of features with places, (B, C, T, h, w) or folded; the last "
                    f"stage of {network.name} gives {_shape(features)}"
                )
            (gradient,) = torch.autograd.grad(logits[:, label].sum(), features)
    finally:
        handle.remove()
    features, gradient = network.unfold(features.detach()), network.unfold(gradient)
    # The mean gradient times the number of places: their sum.
    weights = gradient.sum(dim=(2, 3, 4), keepdim=True)
    return (weights * features).sum(dim=1).relu()


def _shape(features: Any) -> str:
    return str(tuple(features.shape)) if hasattr(features, "shape") else type(features).__name__


def choose_blocks(responses: Mapping[str, Maps], wanted: str = "") -> list[str]:
    """Names of the blocks to draw.

    Args:
        responses: of :func:`dtf.models.layer_maps`.
        wanted: names separated by commas, each a block's name or the end of exactly one; "all"; or "": the
            last block of every resolution.

    Raises:
        ValueError: a name that is no block's, or several blocks'.
    """
    if wanted == "all":
        return list(responses)
    if not wanted:
        return list({maps.values.shape[2:]: name for name, maps in responses.items()}.values())
    chosen = []
    for part in wanted.split(","):
        found = [name for name in responses if name == part or name.endswith("." + part)]
        if part in responses:
            found = [part]
        if len(found) != 1:
            what = (
                f"there is no block {part!r}{nearest(part, responses)}"
                if not found
                else f"several blocks end in {part!r}"
            )
            raise ValueError(f"{what} (there are: {', '.join(responses)})")
        chosen += found
    return chosen


def draw_layers(path: Path, title: str, clip: Clip, responses: Mapping[str, Maps]) -> None:
    """Draw what temporal layers did, one row per layer, one column per map, as PNG.

    Args:
        path: of the picture.
        title: above it.
        clip: what was filtered.
        responses: {layer: its maps of one clip}, at least one.
    """
    import numpy as np

    amplitudes = {name: maps.values[0].sqrt().cpu().numpy() for name, maps in responses.items()}
    columns = max(len(maps) for maps in amplitudes.values())
    cell = min(1.8, max(0.9, 8.6 / columns))
    width = max(6.0, cell * columns + 1.4)
    heights = [width / STEPS_DRAWN + 0.6] + [cell + 0.45] * len(amplitudes)
    figure = _figure(width, sum(heights))
    strip, *grid = figure.subfigures(len(heights), 1, height_ratios=heights)
    strip.suptitle(drawable(title), fontsize=9, parse_math=False)
    _draw_frames(strip.subplots(1, len(spread(len(clip.frames), STEPS_DRAWN))), clip)
    for part, (name, maps) in zip(grid, amplitudes.items(), strict=True):
        axes = np.atleast_1d(part.subplots(1, columns))
        energy = (maps**2).sum(axis=(1, 2))
        for index, axis in enumerate(axes):
            axis.set_axis_off()
            if index >= len(maps):
                continue
            largest = max(float(maps[index].max()), 1e-30)
            image = _overlay(axis, clip.frames[len(clip.frames) // 2], maps[index] / largest)
            share = energy[index] / max(energy.sum(), 1e-30)
            label = responses[name].label(index, clip.duration)
            size = 7 if columns <= 6 else 6
            axis.set_title(f"{label}\n{share:.1%}{' of the energy' * (index == 0)}", fontsize=size)
        _colour_bar(part, image, axes, "1 = map's largest")
        part.supylabel(f"{drawable(name)}\n{maps.shape[1]} x {maps.shape[2]}", fontsize=7, parse_math=False)
    save(figure, path, dpi=110)


def draw_grad_cam(path: Path, title: str, clip: Clip, cam: torch.Tensor, subject: str) -> None:
    """Draw a Grad-CAM over the frames of its steps, as PNG.

    Args:
        path: of the picture.
        title: above it.
        clip: what the network saw.
        cam: (T, h, w) >= 0.
        subject: what the map speaks for, shown at the colour bar.
    """

    steps = len(cam)
    shown = spread(steps, STEPS_DRAWN)
    width = max(6.0, min(1.8, 8.6 / len(shown)) * len(shown) + 0.9)
    figure = _figure(width, 2.1 * (width - 0.9) / len(shown) + 0.8)
    axes = figure.subplots(2, len(shown), squeeze=False)
    # A step joins several frames: the middle one stands for them.
    per_step = len(clip.frames) // steps
    frames = shown * per_step + per_step // 2
    _draw_frames(axes[0], clip, frames)
    evidence = cam.cpu().numpy() / max(float(cam.max()), 1e-30)
    for axis, step, frame in zip(axes[1], shown, frames, strict=True):
        image = _overlay(axis, clip.frames[frame], evidence[step])
        axis.set_axis_off()
    _colour_bar(figure, image, axes[1], "evidence, 1 = largest")
    figure.suptitle(drawable(f"{title}: Grad-CAM for {subject}"), fontsize=9, parse_math=False)
    save(figure, path, dpi=110)


def _overlay(axis: Any, frame: np.ndarray, values: np.ndarray) -> Any:
    """Values in 0..1 as colours over a grey frame, the more opaque the larger."""
    height, width = frame.shape[:2]
    place = (0, width, height, 0)
    axis.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=place)
    return axis.imshow(
        values,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.25 + 0.65 * values,
        extent=place,
        interpolation="bilinear",
    )


def _colour_bar(figure: Any, image: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, ticks=[0, 0.5, 1])
    bar.solids.set_alpha(1)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _figure(width: float, height: float) -> Any:
    return new_figure(width, height, "constrained")


def _draw_frames(axes: Any, clip: Clip, shown: np.ndarray | None = None) -> None:
    """Frames of a clip with their times, one in each of the axes; without a choice, spread over the clip."""
    import numpy as np

    places = spread(len(clip.frames), STEPS_DRAWN) if shown is None else shown
    for axis, frame in zip(np.atleast_1d(axes), places, strict=True):
        axis.imshow(clip.frames[frame])
        axis.set_axis_off()
        axis.set_title(clip.time(frame), fontsize=7)


def parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command-line arguments as (videos, options).

    Raises:
        ValueError: an unknown option, no video, or no checkpoint.
    """
    videos, options = parse_options(arguments, OPTIONS)
    if not options["checkpoint"]:
        raise ValueError("no checkpoint: add checkpoint=PATH, for example OUTPUT/checkpoints/best.ckpt")
    if not videos:
        raise ValueError("no video: python -m dtf.explain VIDEO... checkpoint=PATH")
    return videos, options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", lambda given: _run(*parse(given)), arguments)


def _run(files: list[str], options: dict[str, str]) -> int:
    from rich.console import Console

    from dtf.apply.predictor import Predictor
    from dtf.data.decode import VideoError
    from dtf.files import write_json
    from dtf.models import VideoNetwork
    from dtf.predict import find_videos

    if Path(options["checkpoint"]).suffix in (".pt2", ".onnx"):
        raise ValueError(
            f"{options['checkpoint']} is a graph without its network: give the .ckpt or .safetensors"
        )
    max_read_seconds = seconds(options, "max_read_seconds")
    predictor = Predictor(options["checkpoint"], views="1x1", device=options["device"])
    assert isinstance(predictor.network, VideoNetwork)
    wanted = options["class"]
    if wanted and wanted not in predictor.class_names:
        raise ValueError(f"the network knows no class {wanted!r}{nearest(wanted, predictor.class_names)}")
    folder = Path(options["output"])
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    records: list[dict[str, Any]] = []
    names = FileNames()
    failed = 0
    videos = find_videos(files)
    for video in videos:
        shown = printable(video)
        console.print(f"[bold]{markup(shown)}[/bold]", soft_wrap=True)
        try:
            clip = read_clip(predictor.view, video, max_read_seconds)
        except VideoError as error:
            failed += 1
            print(f"error: {printable(str(error))}", file=sys.stderr)
            records.append({"video": shown, "error": printable(str(error))})
        else:
            stem = names.stem(video)
            record = _explain(predictor, clip, options, folder, stem, os.path.basename(video))
            records.append({"video": shown, "error": None, **record})
            console.print(f"best class: {markup(record['best'])} {record['score']:.1%}")
            if "filters" in record["pictures"]:
                console.print(_shares_table(record))
            else:
                console.print(f"{markup(predictor.network.name)} {NO_LAYERS}", soft_wrap=True)
            for picture in record["pictures"].values():
                console.print(f"picture: {markup(folder / picture)}", soft_wrap=True)
        # After each video: a run that is cut off keeps what it has.
        write_json(folder / "explain.json", records)
    if failed:
        print(f"error: {failed} of {len(videos)} videos could not be read", file=sys.stderr)
    return 1 if failed else 0


def _explain(
    predictor: Predictor, clip: Clip, options: Mapping[str, str], folder: Path, stem: str, title: str
) -> dict[str, Any]:
    """Draw the pictures of one clip; returns its record in explain.json, without the video."""
    import torch

    from dtf.models import VideoNetwork, layer_maps

    network, names = predictor.network, predictor.class_names
    assert isinstance(network, VideoNetwork)
    clips = torch.from_numpy(clip.frames)[None].permute(0, 4, 1, 2, 3).to(predictor.device)
    video = predictor.view.normalize(clips)
    with torch.no_grad():
        scores = network(video)[0].float().softmax(dim=0)
    best = int(scores.argmax())
    label = names.index(options["class"]) if options["class"] else best
    responses = layer_maps(network, video)
    if options["block"] and not responses:
        raise ValueError(f"{network.name} {NO_LAYERS}: leave out block=")
    blocks = choose_blocks(responses, options["block"]) if responses else []
    record: dict[str, Any] = {"best": names[best], "score": float(scores[best]), "class": names[label]}
    record["clip_seconds"] = clip.duration
    record["pictures"] = {}
    if blocks:
        record["pictures"]["filters"] = f"{stem}-filters.png"
        drawn = {block: responses[block] for block in blocks}
        subjects = dict.fromkeys(f"{maps.subject}, over {maps.over}" for maps in drawn.values())
        heading = f"{title}: {'; '.join(subjects)}"
        draw_layers(folder / record["pictures"]["filters"], heading, clip, drawn)
    record["pictures"]["gradcam"] = f"{stem}-gradcam.png"
    cam = grad_cam(network, video, label)[0]
    subject = f"{names[label]}, score {scores[label]:.1%}"
    draw_grad_cam(folder / record["pictures"]["gradcam"], title, clip, cam, subject)
    energies = {name: maps.values[0].sum(dim=(1, 2)) for name, maps in responses.items()}
    record["labels"] = list(dict.fromkeys(label for maps in responses.values() for label in maps.labels))
    record["maps"] = {n: {"over": maps.over, "labels": list(maps.labels)} for n, maps in responses.items()}
    record["shares"] = {n: (e / e.sum().clamp(min=1e-30)).tolist() for n, e in energies.items()}
    return record


def _shares_table(record: Mapping[str, Any]) -> Any:
    """Share of each map in the energy of each layer."""
    from rich.table import Table

    table = Table(title="shares of the energy", title_justify="left")
    table.add_column("block")
    for label in record["labels"]:
        table.add_column(markup(label), justify="right")
    for name, shares in record["shares"].items():
        share = dict(zip(record["maps"][name]["labels"], shares, strict=True))
        texts = (f"{share[label]:.0%}" if label in share else "" for label in record["labels"])
        table.add_row(markup(name), *texts)
    return table


if __name__ == "__main__":
    sys.exit(main())
