"""Draws docs/ddf.png: the filters that a DDFPack predicts for two images, two places and two channels."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from dtf.data.sets.motion import PAIRS, render_clip
from dtf.layers import DDFPack

PLACES = {"p": (10, 12), "q": (44, 46)}
CHANNELS = (3, 7)
BLUE, ORANGE = "tab:blue", "tab:orange"


def draw_filter(axis: Axes, taps: Tensor, title: str, colour: str = "black") -> None:
    limit = taps.abs().max()
    axis.imshow(taps.view(3, 3), cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=8, color=colour, pad=3)
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2)


def main() -> None:
    torch.manual_seed(4)
    features = nn.Sequential(nn.Conv2d(3, 10, 5, padding=2), nn.BatchNorm2d(10), nn.ReLU())
    layer = DDFPack(10, se_ratio=1.0)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)  # what differs comes from the image alone
    figure = plt.figure(figsize=(8.6, 3.6))
    grid = figure.add_gridspec(3, 8, width_ratios=[2.2, 1, 1, 1, 2.2, 1, 1, 1])
    images = [torch.as_tensor(render_clip(PAIRS[0][0], torch.Generator().manual_seed(n))[4]) for n in (21, 3)]
    with torch.no_grad():
        x = features(torch.stack(images).permute(0, 3, 1, 2) / 255.0)
        by_channel, by_pixel = layer.filters(x)
    for panel, image in enumerate(images):
        channel_filters = by_channel[panel].view(10, 9)
        start = 4 * panel
        picture = figure.add_subplot(grid[:, start])
        picture.imshow(image)
        picture.set_title(f"image {panel + 1}", fontsize=9, pad=4)
        picture.set_axis_off()
        for number, channel in enumerate(CHANNELS):
            axis = figure.add_subplot(grid[0, start + 2 + number])
            draw_filter(axis, channel_filters[channel], f"channel {channel}", BLUE)
        for line, (name, (row, column)) in enumerate(PLACES.items(), start=1):
            box = {"boxstyle": "round,pad=0.15", "color": ORANGE}
            picture.text(column, row, name, color="white", fontsize=9, ha="center", va="center", bbox=box)
            pixel_filter = by_pixel[panel, :, row, column]
            draw_filter(figure.add_subplot(grid[line, start + 1]), pixel_filter, f"pixel {name}", ORANGE)
            for number, channel in enumerate(CHANNELS):
                axis = figure.add_subplot(grid[line, start + 2 + number])
                draw_filter(axis, channel_filters[channel] * pixel_filter, f"{channel} at {name}")
    words = [("a filter is", "black"), ("that of its channel (the same at every pixel)", BLUE)]
    words += [("times", "black"), ("that of its pixel (the same for every channel)", ORANGE)]
    for left, (text, colour) in zip((0.09, 0.165, 0.51, 0.56), words, strict=True):
        figure.text(left, 0.025, text, fontsize=9, color=colour)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.09, wspace=0.25, hspace=0.35)
    figure.savefig(Path(__file__).with_name("ddf.png"), dpi=100)


if __name__ == "__main__":
    main()
