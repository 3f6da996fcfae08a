"""Draws docs/motion.png: one clip of each pair of the generated data set."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from dtf.data.sets.motion import NUM_FRAMES, PAIRS, render_clip

SHOWN = list(range(1, NUM_FRAMES, 3))


def main() -> None:
    figure, axes = plt.subplots(len(PAIRS), len(SHOWN), figsize=(8.6, 3.35))
    for number, (row, (forward, backward)) in enumerate(zip(axes, PAIRS, strict=True)):
        clip = render_clip(forward, torch.Generator().manual_seed(20 + number))
        for axis, frame in zip(row, SHOWN, strict=True):
            axis.imshow(clip[frame])
            axis.set_axis_off()
        row[0].text(-0.25, 0.5, f"{forward} →", transform=row[0].transAxes, ha="right", va="center")
        row[-1].text(1.25, 0.5, f"← {backward}", transform=row[-1].transAxes, ha="left", va="center")
    figure.subplots_adjust(left=0.2, right=0.8, top=1, bottom=0, wspace=0.05, hspace=0.05)
    figure.savefig(Path(__file__).with_name("motion.png"), dpi=100)


if __name__ == "__main__":
    main()
