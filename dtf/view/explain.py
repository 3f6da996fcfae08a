"""Pictures of what temporal layers did in a clip, and of what a network's answer rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtf.view.figures import drawable, new_figure, save, spread

if TYPE_CHECKING:
    import torch

    from dtf.apply.explain import Clip
    from dtf.layers.temporal import Maps

STEPS_DRAWN = 8


def draw_layers(path: Path, title: str, clip: Clip, responses: Mapping[str, Maps]) -> None:
    """Draw what temporal layers did, one row per layer, one column per map, as PNG.

    Args:
        path: of the picture.
        title: above it.
        clip: what was filtered.
        responses: {layer: its maps of one clip}, at least one.
    """
    amplitudes = {name: maps.values[0].sqrt().cpu().numpy() for name, maps in responses.items()}
    columns = max(len(maps) for maps in amplitudes.values())
    cell = min(1.8, max(0.9, 8.6 / columns))
    width = max(6.0, cell * columns + 1.4)
    heights = [width / STEPS_DRAWN + 0.6] + [cell + 0.45] * len(amplitudes)
    figure = new_figure(width, sum(heights), "constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    strip, *grid = parts
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
    figure = new_figure(width, 2.1 * (width - 0.9) / len(shown) + 0.8, "constrained")
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


def _draw_frames(axes: Any, clip: Clip, shown: np.ndarray | None = None) -> None:
    """Frames of a clip with their times, one in each of the axes; without a choice, spread over the clip."""
    places = spread(len(clip.frames), STEPS_DRAWN) if shown is None else shown
    for axis, frame in zip(np.atleast_1d(axes), places, strict=True):
        axis.imshow(clip.frames[frame])
        axis.set_axis_off()
        axis.set_title(clip.time(frame), fontsize=7)
