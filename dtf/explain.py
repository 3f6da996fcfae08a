"""Show where a trained network filtered a clip, at which temporal frequency, and what its answer rests on.

    python -m dtf.explain VIDEO|FOLDER... checkpoint=PATH [block=NAME,...] [class=NAME]
                          [output=explained] [device=auto] [max_read_seconds=60]

For each video, with its central clip as in evaluation, two pictures, or three:

* VIDEO-filters.png: what the temporal layers did, one row per layer, over the clip (dtf.models.layer_maps),
  for instance what they added per temporal frequency. Each map shows amplitudes relative to its own largest
  one, above it is its share of the layer's energy. f cycles per clip are given in Hz of the video's own time.
  `block` names the blocks to draw; without it, the last one of every resolution is drawn; block=all: all.
* VIDEO-looks.png, of layers whose pixels look at the next step: where, as arrows, and how much they found.
* VIDEO-calibration.png, of layers that calibrate their kernels: each channel's factor at each step.
* VIDEO-kernels.png, of layers that predict filters: those of some pixels, on the frames, and of channels.
* VIDEO-gradcam.png: Grad-CAM of the last stage, per step of the network, for the best class or `class`.

OUTPUT/explain.json has the shares of all blocks as numbers. A network without temporal layers gets the
second picture only. A file that cannot be read, or takes longer than `max_read_seconds`, is
named, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.runs.options import FileNames, parse_options, run_command, seconds
from dtf.text import markup, nearest, printable

if TYPE_CHECKING:
    from dtf.apply.explain import Clip
    from dtf.apply.predictor import Predictor

OPTIONS = {
    "checkpoint": "",
    "block": "",
    "class": "",
    "output": "explained",
    "device": "auto",
    "max_read_seconds": "60",
}
NO_LAYERS = "has no temporal layers, so there is no picture of what they did"


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

    from dtf.apply.explain import read_clip
    from dtf.apply.predictor import Predictor
    from dtf.data.decode import VideoError
    from dtf.data.lists import find_videos
    from dtf.files import write_json
    from dtf.models import VideoNetwork

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
    videos = find_videos(files, pictures=predictor.view.clip_length == 1)
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
            score = predictor.shown(record["score"])
            console.print(f"best class: {markup(record['best'])} {score}")
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

    from dtf.apply.explain import choose_blocks, grad_cam
    from dtf.models import VideoNetwork, layer_maps
    from dtf.view.explain import OWN_PICTURES, draw_grad_cam, draw_layers

    network, names = predictor.network, predictor.class_names
    assert isinstance(network, VideoNetwork)
    clips = torch.from_numpy(clip.frames)[None].permute(0, 4, 1, 2, 3).to(predictor.device)
    video = predictor.view.normalize(clips)
    with torch.no_grad():
        [scores] = predictor.score(network(video).float())
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
        for picture, (what, draw) in OWN_PICTURES.items():
            having = {block: maps for block, maps in drawn.items() if getattr(maps, picture) is not None}
            if having:
                record["pictures"][picture] = f"{stem}-{picture}.png"
                draw(folder / record["pictures"][picture], f"{title}: {what}", clip, having)
    record["pictures"]["gradcam"] = f"{stem}-gradcam.png"
    cam = grad_cam(network, video, label)[0]
    subject = f"{names[label]}, score {predictor.shown(float(scores[label]))}"
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
