"""Pictures of what temporal layers did in a clip, and of what a network's answer rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtf.view.figures import drawable, new_figure, save, spread

if TYPE_CHECKING:
    import torch

    from dtf.apply.explain import Clip
    from dtf.layers.temporal import Maps

STEPS_DRAWN = 8
LOOKS_DRAWN = 4
"""Pairs of steps in a picture of where pixels looked."""
ARROWS = 14
"""At most so many along a side of a frame."""
PIXELS_FOLLOWED = 3
KERNEL_STEPS_DRAWN = 2
KERNELS_ON_SIDE = 6
"""Pixels along a side of a frame whose filters are drawn on it."""
CHANNELS_ON_SIDE = 8
"""Along a side of a picture of the channels' filters."""


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


def draw_looks(path: Path, title: str, clip: Clip, responses: Mapping[str, Maps]) -> None:
    """Draw where pixels looked in the next step, as PNG: two rows a layer, one column per pair of steps.

    Above: a step, how much its pixels found in the next one as colours, and an arrow from each pixel (some of
    them, where there are many) to the mean of the places that it looked at. Below: the next step, with the
    places of the few pixels that found most, as dots as large as they counted, and a cross where the pixel
    is.

    Args:
        path: of the picture.
        title: above it.
        clip: what the network saw.
        responses: {layer: its maps of one clip}, at least one, all with `Maps.looks`.
    """
    looks = {name: maps.looks for name, maps in responses.items() if maps.looks is not None}
    columns = max(len(spread(look.weights.shape[1], LOOKS_DRAWN)) for look in looks.values())
    width = 2.2 * max(2, columns) + 0.8
    figure = new_figure(width, 4.9 * len(looks) + 0.4, "constrained")
    parts = figure.subfigures(len(looks), 1, squeeze=False)[:, 0]
    for part, (name, look) in zip(parts, looks.items(), strict=True):
        weights, mean = look.weights[0].cpu().numpy(), look.mean()[0].cpu().numpy()
        displacement = look.displacement[0].cpu().numpy()
        steps, _, height, width_px = weights.shape
        axes: Any = part.subplots(2, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        found = np.sqrt((weights**2).sum(axis=1))
        found = found / max(float(found.max()), 1e-30)
        frames = _frames_of_steps(clip, steps + 1)
        for (above, below), step in zip(axes.T, spread(steps, LOOKS_DRAWN), strict=False):
            here, there = (clip.frames[frame] for frame in frames[step : step + 2])
            times = [clip.time(frame) for frame in frames[step : step + 2]]
            image = _overlay(above, here, found[step])
            _draw_arrows(above, here, mean[step], found[step])
            above.set_title(times[0], fontsize=7)
            _draw_places(below, there, displacement[step], weights[step], found[step])
            below.set_title(f"next: {times[1]}", fontsize=7)
        _colour_bar(part, image, axes, "found in the next step, 1 = most")
        part.supylabel(f"{drawable(name)}\n{height} x {width_px}", fontsize=7, parse_math=False)
    figure.suptitle(drawable(title), fontsize=9, parse_math=False)
    save(figure, path, dpi=110)


def draw_calibrations(path: Path, title: str, clip: Clip, responses: Mapping[str, Maps]) -> None:
    """Draw by what channels of each step's kernel were multiplied, as PNG: one picture a layer, below steps.

    Its columns are the steps, its rows the channels, those that change alike over time side by side
    (:func:`order_of_channels`). White is 1, red above it, blue below.

    Args:
        path: of the picture.
        title: above it.
        clip: what the network saw.
        responses: {layer: its maps of one clip}, at least one, all with `Maps.calibration`.
    """
    changes = {
        name: maps.calibration[0].cpu().numpy() - 1
        for name, maps in responses.items()
        if maps.calibration is not None
    }
    steps = max(len(change) for change in changes.values())
    width = min(10.0, max(6.0, 0.8 * steps + 2))
    heights = [(width - 2) / steps + 0.2] + [2.2] * len(changes)
    figure = new_figure(width, sum(heights) + 0.5, "constrained")
    axes: Any = figure.subplots(len(heights), 1, height_ratios=heights)
    top, *grid = axes
    frames = _frames_of_steps(clip, steps)
    # One picture over the columns of those below.
    strip = np.concatenate([clip.frames[frame] for frame in frames], axis=1)
    top.imshow(strip, extent=(0, 1, 0, 1), aspect="auto")
    top.set(yticks=[], xticks=[])
    few = spread(steps, STEPS_DRAWN)
    top.set_xticks((few + 0.5) / steps, [clip.time(frames[t]) for t in few], fontsize=7)
    top.tick_params(length=0)
    for axis, (name, change) in zip(grid, changes.items(), strict=True):
        rows = change[:, order_of_channels(change)].T
        reach = float(np.abs(rows).max())
        image = axis.imshow(
            rows + 1,
            cmap="RdBu_r",
            vmin=1 - (reach or 1),
            vmax=1 + (reach or 1),
            extent=(0, 1, len(rows), 0),
            aspect="auto",
            interpolation="nearest",
        )
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(f"{drawable(name)}\n{len(rows)} channels", fontsize=7, parse_math=False)
        if not reach:
            axis.text(0.5, len(rows) / 2, "all are 1", ha="center", va="center", fontsize=7)
        _signed_bar(figure, image, axis)
    figure.suptitle(drawable(title), fontsize=9, parse_math=False)
    save(figure, path, dpi=110)


def order_of_channels(change: np.ndarray) -> np.ndarray:
    """An order of channels in which those whose values change alike over time are neighbours.

    By their angle in the plane that holds most of their courses over time (the two first singular vectors),
    from the widest gap on.

    Args:
        change: (T, C), values over time less what they are where nothing happens.

    Returns:
        (C,) numbers of the channels.
    """
    directions, sizes, _ = np.linalg.svd(change.T, full_matrices=False)
    plane = (directions * sizes)[:, :2]
    # The sign of a singular vector means nothing: most of what lies along it shall be positive.
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    if plane.shape[1] < 2:
        return np.argsort(-plane[:, 0], kind="stable")
    angles = np.arctan2(plane[:, 1], plane[:, 0])
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(angles[order], prepend=angles[order[-1]] - 2 * np.pi)
    return np.roll(order, -int(gaps.argmax()))


def draw_kernels(path: Path, title: str, clip: Clip, responses: Mapping[str, Maps]) -> None:
    """Draw filters that were predicted for pixels and channels, as PNG: one row a layer.

    On frames of the clip, the filter of the pixel in the middle of each little picture (where a pixel has
    several: the first); at last, the filters of channels spread over all of them, in their order, of the
    first of these frames. Red is positive, blue negative.

    Args:
        path: of the picture.
        title: above it.
        clip: what the network saw.
        responses: {layer: its maps of one clip}, at least one, all with `Maps.kernels`.
    """
    kernels = {name: maps.kernels for name, maps in responses.items() if maps.kernels is not None}
    columns = 1 + max(min(kernel.by_pixel.shape[1], KERNEL_STEPS_DRAWN) for kernel in kernels.values())
    figure = new_figure(3.2 * columns + 0.8, 3.5 * len(kernels) + 0.4, "constrained")
    parts = figure.subfigures(len(kernels), 1, squeeze=False)[:, 0]
    for part, (name, kernel) in zip(parts, kernels.items(), strict=True):
        by_pixel, by_channel = (v[0].float().cpu().numpy() for v in (kernel.by_pixel, kernel.by_channel))
        steps, _, side, _, height, width = by_pixel.shape
        shown, _ = _inner(steps, KERNEL_STEPS_DRAWN)
        axes: Any = part.subplots(1, columns)
        for axis in axes:
            axis.set_axis_off()
        frames = _frames_of_steps(clip, steps)
        reach = max(float(np.abs(by_pixel[shown, 0]).max()), 1e-30)
        for axis, step in zip(axes, shown, strict=False):
            frame = frames[step]
            image = _draw_on_pixels(axis, clip.frames[frame], by_pixel[step, 0], reach)
            axis.set_title(f"pixels, {clip.time(frame)}", fontsize=7)
        _signed_bar(part, image, axes[: len(shown)])
        chosen = spread(by_channel.shape[1], CHANNELS_ON_SIDE**2)
        tiles = _tiles(by_channel[shown[0], chosen])
        reach = max(float(np.nanmax(np.abs(tiles))), 1e-30)
        image = axes[-1].imshow(tiles, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
        axes[-1].set_title(f"{len(chosen)} of {by_channel.shape[1]} channels", fontsize=7)
        _signed_bar(part, image, axes[-1:])
        label = f"{drawable(name)}\n{height} x {width}, filters {side} x {side}"
        part.supylabel(label, fontsize=7, parse_math=False)
    figure.suptitle(drawable(title), fontsize=9, parse_math=False)
    save(figure, path, dpi=110)


def _draw_on_pixels(axis: Any, frame: np.ndarray, filters: np.ndarray, reach: float) -> Any:
    """Filters (K, K, h, w) of some pixels over a grey frame, each around its pixel."""
    size = np.array(frame.shape[:2])
    map_size = np.array(filters.shape[2:])
    scale = size / map_size
    axis.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, size[1], size[0], 0))
    (rows, columns), distance = zip(*(_inner(n, KERNELS_ON_SIDE) for n in map_size), strict=True)
    half = 0.4 * np.array(distance)  # pixels of the map
    for row in rows:
        for column in columns:
            middle = np.array([row, column]) + 0.5
            (top, left), (bottom, right) = (middle - half) * scale, (middle + half) * scale
            image = axis.imshow(
                filters[:, :, row, column],
                cmap="RdBu_r",
                vmin=-reach,
                vmax=reach,
                extent=(left, right, bottom, top),
                interpolation="nearest",
                zorder=2,
            )
            corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
            axis.plot(*corners, color="black", linewidth=0.5)
    # On maps of few pixels, pictures reach beyond the frame.
    beyond = np.maximum(0, half - 0.5 - (rows[0], columns[0])) * scale
    axis.set(xlim=(-beyond[1], size[1] + beyond[1]), ylim=(size[0] + beyond[0], -beyond[0]))
    return image


def _inner(size: int, most: int) -> tuple[np.ndarray, int]:
    """At most so many of 0..size - 1 at equal distances, in the middle; and their distance."""
    distance = -(-size // most)
    count = size // distance
    return (size - 1 - distance * (count - 1)) // 2 + distance * np.arange(count), distance


def _tiles(filters: np.ndarray) -> np.ndarray:
    """Filters (N, K, K) as one picture, `CHANNELS_ON_SIDE` in a row, with gaps of NaN."""
    count, side, _ = filters.shape
    columns = min(count, CHANNELS_ON_SIDE)
    rows = -(-count // columns)
    picture = np.full((rows, side + 1, columns, side + 1), np.nan, dtype=filters.dtype)
    for number, one in enumerate(filters):
        picture[number // columns, :side, number % columns, :side] = one
    return picture.reshape(rows * (side + 1), columns * (side + 1))[:-1, :-1]


def _frames_of_steps(clip: Clip, steps: int) -> np.ndarray:
    """A step joins several frames: the number of the middle one, which stands for them, for each step."""
    per_step = len(clip.frames) // steps
    return np.arange(steps) * per_step + per_step // 2


def _signed_bar(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    bar.ax.tick_params(labelsize=6)


OWN_PICTURES: Mapping[str, tuple[str, Callable[[Path, str, Clip, Mapping[str, Maps]], None]]] = {
    "looks": ("where pixels looked in the next step", draw_looks),
    "calibration": ("what channels of each step's kernel were multiplied by", draw_calibrations),
    "kernels": ("filters predicted for pixels and channels", draw_kernels),
}
"""What only some families have, by its name in `Maps`: a title, and what draws it."""


def _draw_arrows(axis: Any, frame: np.ndarray, mean: np.ndarray, found: np.ndarray) -> None:
    """From pixels of a map (2, h, w) to where they looked, the more opaque the more they found."""
    rows, columns = (spread(size, ARROWS) for size in found.shape)
    row, column = np.meshgrid(rows, columns, indexing="ij")
    scale = np.array(frame.shape[:2]) / found.shape  # pixels of the frame for one of the map
    arrows = mean[:, row, column] * scale[:, None, None]
    axis.quiver(
        (column + 0.5) * scale[1],
        (row + 0.5) * scale[0],
        arrows[1],
        arrows[0],
        color="cyan",
        alpha=0.2 + 0.8 * found[row, column],
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.008,
        headwidth=4,
        minlength=0.3,
    )
    axis.set(xlim=(0, frame.shape[1]), ylim=(frame.shape[0], 0))


def _draw_places(
    axis: Any, frame: np.ndarray, displacement: np.ndarray, weights: np.ndarray, found: np.ndarray
) -> None:
    """The places (N, 2, h, w) of the few pixels that found most, over the next frame."""
    size = np.array(frame.shape[:2])
    scale = size / found.shape
    axis.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, size[1], size[0], 0))
    left = found.copy()
    reach = np.maximum(1, np.array(found.shape) // 4)
    for number in range(PIXELS_FOLLOWED):
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        if left[row, column] <= 0:
            break
        # The next one lies elsewhere.
        left[
            max(0, row - reach[0]) : row + reach[0] + 1, max(0, column - reach[1]) : column + reach[1] + 1
        ] = 0
        pixel = (np.array([row, column]) + 0.5) * scale
        places = pixel + displacement[:, :, row, column] * scale
        counted = np.abs(weights[:, row, column])
        colour = f"C{number + 1}"
        axis.scatter(places[:, 1], places[:, 0], s=30 * counted / max(counted.max(), 1e-30), color=colour)
        axis.scatter(pixel[1], pixel[0], s=40, marker="x", color=colour, linewidths=1)
    axis.set(xlim=(0, size[1]), ylim=(size[0], 0))


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
    frames = _frames_of_steps(clip, steps)[shown]
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
