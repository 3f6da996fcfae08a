"""Draws docs/dtf.png, docs/sifa.png and docs/tada.png: what these layers, with random weights, make of clips.

That of DDF is drawn by draw_ddf.py. In all of them orange is what differs from place to place, blue what does
not, grey what is the same for all clips, and black what the layer makes of them.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dtf.data.sets.motion import PAIRS, render_clip
from dtf.layers import DTFBlock, RouteFuncMLP, SIFABlock
from dtf.ops import frame_wise_aggregation

BLUE, ORANGE = "tab:blue", "tab:orange"
PLACES = {"p": (14, 18), "q": (42, 44)}  # row, column
STEPS = slice(8, 16)
"""Frames of the moving clip."""


def features_of(clip: Tensor, channels: int) -> Tensor:
    """(N, H, W, 3) uint8 -> random features (1, channels, N, H, W)."""
    network = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.BatchNorm2d(channels), nn.ReLU())
    return network(clip.permute(0, 3, 1, 2) / 255.0).transpose(0, 1)[None]


def picture(axis: Axes, frame: Tensor, title: str, marked: Sequence[str] = ()) -> None:
    axis.imshow(frame)
    axis.set_title(title, fontsize=8, pad=3)
    axis.set_axis_off()
    for name in marked:
        row, column = PLACES[name]
        box = {"boxstyle": "round,pad=0.15", "color": ORANGE}
        axis.text(column, row, name, color="white", fontsize=8, ha="center", va="center", bbox=box)


def taps(axis: Axes, values: Tensor, limit: float, title: str = "", colour: str = "black") -> None:
    axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    bare(axis, colour)
    axis.set_title(title, fontsize=8, color=colour, pad=3)


def bare(axis: Axes, colour: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2)


def words(figure: Figure, *parts: tuple[str, str]) -> None:
    """A centred line below the picture, of texts in their colours."""
    texts = [figure.text(0, 0.025, text, fontsize=9, color=colour) for text, colour in parts]
    widths = [text.get_window_extent().width / figure.bbox.width + 0.007 for text in texts]
    for number, text in enumerate(texts):
        text.set_x(0.5 - sum(widths) / 2 + sum(widths[:number]))


def save(figure: Figure, name: str) -> None:
    figure.savefig(Path(__file__).with_name(name), dpi=100)
    plt.close(figure)


@torch.no_grad()
def draw_dtf() -> None:
    """The filters at two pixels, of two channels, and the frames' features ahead of and behind them."""
    torch.manual_seed(1)
    clip = render_clip(PAIRS[0][0], torch.Generator().manual_seed(21))[STEPS]
    x, shown = features_of(clip, 16), (3, 8)
    block = DTFBlock(16, len(clip), filter_groups=1).eval()
    enriched, correlation = frame_wise_aggregation(x)
    inputs = torch.cat((enriched, correlation), dim=1)
    frequencies = len(clip) // 2 + 1
    predicted = torch.einsum("toi,bithw->bohw", block.filter_weight, inputs)[0]
    filters = torch.view_as_complex(
        predicted.view(16, frequencies, 2, *x.shape[3:]).movedim(2, -1).contiguous()
    )
    spectrum = torch.fft.rfft(enriched[0], dim=1, norm="ortho")
    filtered = torch.fft.irfft(spectrum * filters, n=len(clip), dim=1, norm="ortho")

    figure = plt.figure(figsize=(8.6, 3.6))
    grid = figure.add_gridspec(4, 7, width_ratios=[1.25, 0.12, 1.3, 1.3, 0.12, 1.3, 1.3])
    for line in range(4):
        marked = list(PLACES) if line == 0 else []
        picture(figure.add_subplot(grid[line, 0]), clip[2 * line], f"frame {2 * line}", marked)
    for panel, (name, (row, column)) in enumerate(PLACES.items()):
        for number, channel in enumerate(shown):
            cell = grid[:, 2 + 3 * panel + number].subgridspec(3, 1, hspace=0.75)
            at = (channel, slice(None), row, column)
            rows = (
                (enriched[0][at], f"channel {channel} at {name}", "black"),
                (filters[at].abs(), "its filter", ORANGE),
                (filtered[at], "filtered", "black"),
            )
            for line, (values, title, colour) in enumerate(rows):
                axis = figure.add_subplot(cell[line])
                if colour == ORANGE:
                    axis.bar(range(frequencies), values, color=ORANGE, width=0.7)
                else:
                    axis.plot(range(len(clip)), values, ".-", color="black", linewidth=1)
                bare(axis, colour)
                axis.set_title(title, fontsize=8, color=colour, pad=3)
                axis.set_xlabel("cycles per clip, 0 to 4" if colour == ORANGE else "frame", fontsize=7)
                axis.xaxis.labelpad = 2
    words(
        figure,
        ("the features of a pixel over time are filtered, frequency by frequency, with", "black"),
        ("a filter of that pixel and channel", ORANGE),
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.14, wspace=0.12, hspace=0.3)
    save(figure, "dtf.png")


@torch.no_grad()
def draw_sifa() -> None:
    """Where two pixels of a frame look in the next one, and how much each place counts."""
    torch.manual_seed(2)
    clip = render_clip(PAIRS[0][0], torch.Generator().manual_seed(21))[STEPS]
    x = features_of(clip, 16)
    block = SIFABlock(16, offset_init="kaiming").eval()
    looks = block.explain(x).looks
    step, reach = 3, 4.5

    figure = plt.figure(figsize=(8.6, 3.6))
    grid = figure.add_gridspec(2, 5, width_ratios=[2.1, 0.05, 1, 1, 0.8])
    picture(figure.add_subplot(grid[:, 0]), clip[step], f"frame {step}", list(PLACES))
    for line, (name, (row, column)) in enumerate(PLACES.items()):
        displacement = looks.displacement[0, step, :, :, row, column]  # (9, 2)
        weights = looks.weights[0, step, :, row, column]
        for number, title in enumerate((f"around {name}, frame {step}", "the next frame")):
            axis = figure.add_subplot(grid[line, 2 + number])
            axis.imshow(clip[step + number])
            axis.set_xlim(column - reach, column + reach)
            axis.set_ylim(row + reach, row - reach)
            bare(axis, "black")
            axis.set_title(title, fontsize=8, pad=3)
            if number == 0:
                axis.plot(column, row, "o", color=ORANGE, markersize=8, markeredgecolor="white")
                continue
            for tap, (down, right) in enumerate(displacement.tolist()):
                dh, dw = tap // 3 - 1, tap % 3 - 1
                start, end = (column + dw, row + dh), (column + right, row + down)
                axis.plot(*start, "+", color="white", markersize=5)
                arrow = {"arrowstyle": "-", "color": ORANGE, "linewidth": 1}
                axis.annotate("", end, start, arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0})
                axis.plot(*end, "o", color=ORANGE, markersize=5, markeredgecolor="white", markeredgewidth=0.7)
        limit = weights.abs().max().item()
        taps(figure.add_subplot(grid[line, 4]), weights.view(3, 3), limit, "how much each counts", ORANGE)
    words(
        figure,
        ("a pixel adds what is found in the next frame, at", "black"),
        ("places that are predicted for that pixel (from + to o)", ORANGE),
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.1, wspace=0.12, hspace=0.2)
    save(figure, "sifa.png")


@torch.no_grad()
def draw_tada() -> None:
    """The calibrations of a clip's frames, and what they make of one kernel."""
    torch.manual_seed(5)
    clip = render_clip(PAIRS[4][0], torch.Generator().manual_seed(7))
    clip = clip[2 : 2 + 3 * 6 : 3]
    x = features_of(clip, 12)
    routing = RouteFuncMLP(12, 2, [3, 3])
    nn.init.normal_(routing.b.weight, std=0.25)
    routing.train()  # its norm has seen nothing yet
    alpha = routing(x)[0, :, :, 0, 0]  # (C, T)
    kernel, shown = torch.randn(12, 3, 3), (3, 8)

    figure = plt.figure(figsize=(8.6, 3.6))
    heights = [1.5, 0.9, 1, 1]
    grid = figure.add_gridspec(4, 1 + len(clip), height_ratios=heights)
    for step, frame in enumerate(clip):
        picture(figure.add_subplot(grid[0, 1 + step]), frame, f"frame {3 * step}")
        axis = figure.add_subplot(grid[1, 1 + step])
        colours = [BLUE if channel in shown else "lightsteelblue" for channel in range(12)]
        axis.bar(range(12), alpha[:, step], color=colours)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_ylim(min(0, alpha.min()), alpha.max())
        bare(axis, BLUE)
    for line, channel in enumerate(shown, start=2):
        limit = (kernel[channel].abs().max() * alpha[channel].abs().max()).item()
        axis = figure.add_subplot(grid[line, 0])
        taps(axis, kernel[channel], limit, colour="grey")
        axis.set_ylabel(f"channel {channel}", fontsize=8)
        for step in range(len(clip)):
            axis = figure.add_subplot(grid[line, 1 + step])
            taps(axis, kernel[channel] * alpha[channel, step], limit)
    axis = figure.add_subplot(grid[1, 0])
    axis.text(1, 0.5, "alpha of the\n12 channels", fontsize=8, color=BLUE, ha="right", va="center")
    axis.set_axis_off()
    words(
        figure,
        ("a frame's kernel is", "black"),
        ("one that is learnt, the same for all clips,", "dimgrey"),
        ("times", "black"),
        ("a number of that frame and channel", BLUE),
    )
    figure.subplots_adjust(left=0.03, right=0.99, top=0.94, bottom=0.09, wspace=0.1, hspace=0.22)
    save(figure, "tada.png")


if __name__ == "__main__":
    draw_dtf()
    draw_sifa()
    draw_tada()
