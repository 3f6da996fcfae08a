"""The sections of a page, but for curves and videos: each from a run to blocks, none where it has nothing."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dtf.files import at
from dtf.text import cell
from dtf.view import pictures
from dtf.view.report.blocks import ROWS_SHOWN, Block, image, pairs

if TYPE_CHECKING:
    from dtf.runs.reading import Run

CLASSES_SHOWN = 10
"""Best ones, and worst ones, where there are more than twice as many."""
BROKEN_SHOWN = 100
TABLES_SHOWN = 20

# A folder may come from anywhere. More than this is no run of ours, and is not drawn.
MOST_CLASSES = 4000
"""In a confusion matrix."""
MOST_LAYERS, MOST_KINDS, MOST_MAPS = 200, 10, 64
MOST_ENERGY = 1e30


def result(run: Run) -> list[Block]:
    """What was found, in a few figures, and where."""
    found = run.results
    lines = [("network", run.about.get("network")), ("data", at(run.config, "data", "root"))]
    lines += [(name, found.get(name)) for name in ("checkpoint", "views")]
    lines.append(("split", found.get("split_is")))
    lines.append(("folder", str(run.folder.resolve())))
    known = run.measures
    if known[0].name not in found:
        note = (
            "Neither validated nor tested." if found else "This run is not finished: there is no result yet."
        )
        return [{"note": note}, pairs(lines)]
    cards = [
        *((m.title, "none" if found[m.name] is None else m.format(found[m.name])) for m in known),
        (f"videos of {found.get('split', 'the split')}", f"{found['videos']:,}"),
    ]
    if "loss" in found:
        loss = found["loss"]
        cards.insert(len(known), ("loss", "none" if loss is None else f"{loss:.3f}"))
    if "views_per_video" in found:
        cards.append(("views of each", ", ".join(str(v) for v in found["views_per_video"][:ROWS_SHOWN])))
    if found["broken_videos"]:
        cards.append(("broken, counted as wrong", str(len(found["broken_videos"]))))
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime((run.folder / "results.json").stat().st_mtime))
    lines.append(("finished", written))
    refused = [{"note": f"Refused: {found['refused']}"}] if found.get("refused") else []
    return [*refused, {"cards": cards}, pairs(lines)]


def details(run: Run) -> list[Block]:
    """The tables and pictures that a task shows, whatever it is."""
    blocks: list[Block] = []
    for table in run.results.get("tables", [])[:TABLES_SHOWN]:
        head, rows = [str(text) for text in table["head"]], table["rows"]
        shown = [[_entry(value) for value in row] for row in rows[:ROWS_SHOWN]]
        numeric = {i for i in range(len(head)) if all(isinstance(row[i], int | float) for row in rows)}
        blocks.append({"heading": str(table["title"]), "head": head, "rows": shown, "numeric": numeric})
        if len(rows) > ROWS_SHOWN:
            blocks.append({"note": f"and {len(rows) - ROWS_SHOWN} more"})
    for picture in run.results.get("pictures", [])[:TABLES_SHOWN]:
        content = run.picture(str(picture["file"]))
        blocks.append({"large": image(content, "png", str(picture["alt"]))})
    return blocks


def _entry(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def confusions(run: Run) -> list[Block]:
    """Which classes are taken for which: a matrix, and the pairs."""
    if "per_class" not in run.results:
        return []
    names = list(run.results["per_class"])
    confused = [(p["class"], p["taken_for"], p["videos"]) for p in run.results["confused_pairs"][:ROWS_SHOWN]]
    table: Block = {}
    if confused:
        head = ("class", "taken for", "videos")
        table = {"heading": "Most confused", "head": head, "rows": confused, "numeric": {2}}
    if len(names) > MOST_CLASSES:
        return [{"note": f"No matrix: {len(names)} classes are too many for a picture."}, table]
    number = {cell(name): i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for video in run.videos:
        if video.label in number and video.prediction in number:
            matrix[number[video.label], number[video.prediction]] += 1
    if not matrix.any():
        return [{"note": "No matrix: scores.csv has no video of these classes."}, table]
    right = f"{np.trace(matrix)} of {matrix.sum()} videos are right"
    worst = "; ".join(f"{a} taken for {b}: {n}" for a, b, n in confused[:3])
    alt = f"Confusion matrix of {len(names)} classes: {right}" + (
        f"; most confused: {worst}." if worst else "."
    )
    chosen = pictures.most_confused(matrix)
    if len(chosen) == len(names):
        heading = "videos of a class (row) and what they are taken for"
        figure = pictures.confusion_figure(matrix, names, heading)
        return [{"beside": [{"large": image(pictures.to_png(figure, 90), "png", alt)}, table]}]
    overview = pictures.confusion_overview(matrix, f"all {len(names)} classes")
    whole: Block = {"large": image(pictures.to_png(overview, 90), "png", alt)}
    heading = f"the {len(chosen)} most confused of {len(names)} classes"
    figure = pictures.confusion_figure(matrix, names, heading, chosen)
    alt = f"Confusion matrix of {heading}" + (f"; most confused: {worst}." if worst else ".")
    return [{"beside": [whole, table]}, {"large": image(pictures.to_png(figure, 80), "png", alt)}]


def classes(run: Run) -> list[Block]:
    """How many videos of each class are right, the best class first."""
    entries = run.results["per_class"].items() if "per_class" in run.results else []
    found = [
        (name, float(entry["accuracy"]), f"{entry['right']} of {entry['videos']}")
        for name, entry in entries
        if entry["videos"]
    ]
    if not all(0 <= accuracy <= 1 for _, accuracy, _ in found):
        raise ValueError("an accuracy that is no share")
    found.sort(key=lambda item: (-item[1], item[0]))
    if len(found) <= 2 * CLASSES_SHOWN:
        return [{"bars": found}] if found else []
    best, worst = found[:CLASSES_SHOWN], found[: -CLASSES_SHOWN - 1 : -1]
    return [
        {"beside": [{"heading": "Best", "bars": best}, {"heading": "Worst", "bars": worst}]},
        {"summary": f"all {len(found)} classes", "details": {"bars": found}},
    ]


def filters(run: Run) -> list[Block]:
    """What each temporal layer adds."""
    found = pictures.layers_by_map(run.filters)
    rows = [row for layers in found.values() for row in layers.values()]
    few = len(found) <= MOST_KINDS and len(rows) <= MOST_LAYERS
    if not few or not all(1 <= len(row) <= MOST_MAPS for row in rows):
        raise ValueError("filters.json has more than the layers of a network")
    if not all(0 <= energy < MOST_ENERGY for row in rows for energy in row.values()):
        raise ValueError("filters.json has an energy that is none")
    blocks: list[Block] = []
    for over, layers in found.items():
        figure = pictures.filters_figure(layers, over, f"what each temporal layer adds, over {over}")
        energy = {name: sum(row.values()) for name, row in layers.items()}
        most = max(energy, key=lambda name: energy[name])
        alt = (
            f"Temporal filters of {len(layers)} blocks: share of the energy that each adds over {over}, and "
            f"its amplitude, the largest {math.sqrt(energy[most]):.3g} in {most}."
        )
        blocks.append({"large": image(pictures.to_png(figure, 90), "png", alt)})
    note = (
        "Measured on a few videos. Amplitudes are in units of a block's features; a block that adds nothing "
        "is still the identity."
    )
    return [*blocks, {"note": note}] if blocks else []


def broken(run: Run) -> list[Block]:
    """Videos that could not be read, and why."""
    tested = [str(entry["error"]) for entry in run.results.get("broken_videos", [])]
    blocks: list[Block] = []
    for heading, lines in (("Counted as wrong in the result", tested), ("Replaced in training", run.broken)):
        if lines:
            more = [f"and {len(lines) - BROKEN_SHOWN} more"] if len(lines) > BROKEN_SHOWN else []
            blocks.append({"heading": f"{heading}: {len(lines)}", "lines": lines[:BROKEN_SHOWN] + more})
    return blocks


def parameters(run: Run) -> list[Block]:
    """The groups of parameters that are trained together."""
    total = run.about.get("parameters")
    blocks: list[Block] = [{"note": f"{total:,} parameters."}] if isinstance(total, int) else []
    rows = [
        (g["name"], g["tensors"], f"{g['numbers']:,}", f"{g['lr']:.4g}", f"{g['weight_decay']:g}")
        for g in (run.about.get("parameter_groups") or [])[:ROWS_SHOWN]
    ]
    if rows:
        head = ("trained together", "tensors", "numbers", "learning rate", "weight decay")
        blocks.append({"head": head, "rows": rows, "numeric": {1, 2, 3, 4}})
    return blocks


def repeat(run: Run) -> list[Block]:
    """The command and all that it depends on."""
    about = run.about
    blocks: list[Block] = []
    git = about.get("git")
    if about.get("command"):
        checkout = f"git checkout {git['commit']}\n" if git else ""
        blocks.append({"code": f"{checkout}{about['command']}"})
    if git and git["dirty"]:
        blocks.append({"note": "The code differed from that commit: it had changes that were not committed."})
    lines = [("device", about.get("device")), ("precision", about.get("precision"))]
    lines += list(about.get("versions", {}).items())[:ROWS_SHOWN]
    blocks.append(pairs(lines))
    if run.settings:
        blocks.append({"summary": "all settings", "details": {"code": run.settings}})
    return blocks
