"""Pictures and videos of what a network says: frames with bars, a timeline, captions burnt into a video.

Class and file names are data: unprintable signs are escaped, and `$` starts no formula.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dtf.apply.sliding import Window
from dtf.data.reader import FrameReader, VideoError
from dtf.view.figures import drawable, new_figure, pieces, save, spread

FRAMES_DRAWN = 8
MIN_VIDEO_PX = 256
"""Smaller videos are enlarged by a whole number before captions are burnt in, so that they can be read."""

NAME_SHOWN = 60
_MAX_VIDEO_PX = 4096

_BAR_COLOUR = "#4878a8"
_COLOURS = [f"C{i}" for i in range(10) if i != 7]  # matplotlib's, without the grey
_OTHER_COLOUR = "#bbbbbb"
_BAR_RGB = (72, 120, 168)
_TICKS_PER_SECOND = 90_000
_MAX_POINTS = 400

Caption = list[tuple[str, float]]
"""(class, score) pairs, best first."""


def draw_prediction(path: Path, video: str, frames: np.ndarray, caption: Caption) -> None:
    """Draw frames that the network saw above the bars of its best classes, as PNG.

    Args:
        path: of the picture.
        video: its title.
        frames: (T, S, S, 3) uint8.
        caption: at least one class.
    """
    figure, (top, bottom) = _figure(9, [9 / _num_shown(frames), 0.3 + 0.35 * len(caption)], extra=0.3)
    _strip(top, frames, video)
    places = range(len(caption))
    bottom.barh(places, [score for _, score in caption], color=_BAR_COLOUR)
    bottom.set_yticks(places, [drawable(name, NAME_SHOWN) for name, _ in caption], parse_math=False)
    bottom.invert_yaxis()
    bottom.set_xlim(0, 1.12)
    bottom.set_xticks([0, 0.25, 0.5, 0.75, 1])
    for place, (_, score) in zip(places, caption, strict=True):
        bottom.text(score + 0.01, place, f"{score:.1%}", va="center", fontsize=9)
    save(figure, path, dpi=110)


def draw_timeline(
    path: Path,
    video: str,
    windows: Sequence[Window],
    scores: np.ndarray,
    class_names: Sequence[str],
    frames: np.ndarray,
    num_least: int = 5,
) -> None:
    """Draw scores over time: a line for each class that is best somewhere, and which one is best when.

    At most nine classes have a line: those that are best in most windows. Of more than 400 windows, the means
    of neighbouring ones are drawn: single ones would fill the picture.

    Args:
        path: of the picture, PNG.
        video: its title.
        windows: W windows.
        scores: (W, C) in 0..1; drawn at the centre of each window.
        class_names: C names.
        frames: (n, S, S, 3) uint8 at even distances over the video, n at least 1.
        num_least: where fewer classes are best somewhere, those with the highest mean fill up to this number.
    """
    start, end = windows[0].start, windows[-1].end
    firsts = np.arange(0, len(windows), math.ceil(len(windows) / _MAX_POINTS))
    counts = np.diff([*firsts.tolist(), len(windows)])
    scores = np.add.reduceat(scores.astype(np.float64), firsts) / counts[:, None]
    all_centres = np.array([window.centre for window in windows])
    centres = (np.add.reduceat(all_centres, firsts) / counts).tolist()
    wins = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    num_drawn = min(len(_COLOURS), max(int((wins > 0).sum()), num_least))
    drawn = np.lexsort((-scores.mean(axis=0), -wins))[:num_drawn].tolist()
    figure, (top, middle, bottom) = _figure(11, [11 / len(frames), 3.2, 0.3], extra=1.0, joined=True)
    _strip(top, frames, video)
    # Few windows are dots, many a line without them.
    marker = "o" if len(centres) <= 60 else None
    for place, c in enumerate(drawn):
        middle.plot(centres, scores[:, c], color=_COLOURS[place], marker=marker, markersize=3, lw=1.4)
    middle.set_ylim(0, 1.02)
    middle.set_ylabel("score")
    middle.grid(alpha=0.3)
    edges = [start, *((a + b) / 2 for a, b in pairwise(centres)), end]
    for first, stop, best in _runs(scores.argmax(axis=1).tolist()):
        colour = _COLOURS[drawn.index(best)] if best in drawn else _OTHER_COLOUR
        bottom.axvspan(edges[first], edges[stop], color=colour, lw=0)
    bottom.set_ylim(0, 1)
    bottom.set_yticks([0.5], ["best"])
    bottom.tick_params(axis="y", length=0)
    bottom.set_xlim(start, end)
    bottom.xaxis.set_major_locator(_time_locator(end - start))
    bottom.xaxis.set_major_formatter(lambda seconds, _: clock(seconds))
    bottom.set_xlabel("time" if end >= 60 else "time (s)")
    labels = [drawable(class_names[c], NAME_SHOWN) for c in drawn]
    handles = _swatches(_COLOURS, labels)
    if any(wins[c] for c in range(len(wins)) if c not in drawn):
        handles += _swatches([_OTHER_COLOUR], ["another class is best"])
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path, dpi=110)


def clock(seconds: float) -> str:
    """12.5 -> "12.5", 75 -> "1:15", 3675 -> "1:01:15"."""
    if seconds < 60:
        return f"{seconds:g}"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _time_locator(span: float) -> Any:
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    for step in (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600):
        if 30 <= span <= 12 * step:
            return MultipleLocator(step)
    return MaxNLocator(12, steps=[1, 2, 5, 10])


def _runs(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stretches of equal values as (first, stop, value)."""
    changes = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    bounds = [0, *changes, len(values)]
    return [(a, b, values[a]) for a, b in pairwise(bounds)]


def _swatches(colours: Sequence[str], labels: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colours[i], label=label) for i, label in enumerate(labels)]


def _figure(width: float, heights: Sequence[float], extra: float, joined: bool = False) -> tuple[Any, Any]:
    """A figure of axes above each other, heights in inches; the first is for pictures."""
    figure = new_figure(width, sum(heights) + extra, "constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=list(heights))
    for axis in axes[1:]:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    if joined:
        axes[1].sharex(axes[2])
        axes[1].tick_params(labelbottom=False)
    return figure, axes


def _num_shown(frames: np.ndarray) -> int:
    return min(FRAMES_DRAWN, len(frames))


def _strip(axis: Any, frames: np.ndarray, title: str) -> None:
    chosen = frames[spread(len(frames), FRAMES_DRAWN)]
    axis.imshow(np.concatenate(list(chosen), axis=1), aspect="equal")
    axis.set_axis_off()
    axis.set_title(drawable(os.path.basename(title)), fontsize=10, parse_math=False)


# ------------------------------------------------------------------------------------- captions in a video


def write_annotated(
    path: Path,
    reader: FrameReader,
    caption_at: Callable[[float], Caption],
    on_frame: Callable[[], None] | None = None,
) -> None:
    """Write a copy of a video with classes and bars burnt into its frames, as MP4 that browsers play.

    H.264 in yuv420p at the times of the original, whatever its rate; without sound. Frames with an odd side
    lose a row or column of pixels, as the format wants.

    Args:
        path: of the MP4 file, which appears when it is whole.
        reader: of the video.
        caption_at: what to show at a time in seconds.
        on_frame: called after each frame.

    Raises:
        VideoError: the video has no frame rate, too much of it cannot be decoded, or the copy cannot be
            encoded (a side above 16384 pixels).
    """
    import av

    times = reader.frame_seconds
    if times is None or not reader.fps > 0:
        raise VideoError(reader.path, "has no frame rate, which an annotated video needs")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    panels = _Panels()
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = None
            for index, frame in reader.iter_forward(range(reader.num_frames)):
                enlarged = _enlarge(frame)
                if stream is None:
                    stream = container.add_stream(
                        "libx264", rate=Fraction(reader.fps).limit_denominator(1001), options={"crf": "20"}
                    )
                    stream.height, stream.width = enlarged.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
                seconds = float(times[index])
                panels.burn(enlarged, caption_at(seconds))
                picture = av.VideoFrame.from_ndarray(enlarged, format="rgb24")
                picture.pts = round(seconds * _TICKS_PER_SECOND)
                picture.time_base = Fraction(1, _TICKS_PER_SECOND)
                container.mux(stream.encode(picture))
                if on_frame is not None:
                    on_frame()
            assert stream is not None
            container.mux(stream.encode(None))
        os.replace(partial, path)
    except av.FFmpegError as error:  # what reading raises is a VideoError
        reason = f"has no annotated copy: it cannot be encoded ({error.strerror or type(error).__name__})"
        raise VideoError(reader.path, reason) from error
    finally:
        partial.unlink(missing_ok=True)


def _enlarge(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> a copy with even sides, the shorter at least `MIN_VIDEO_PX`."""
    height, width = frame.shape[:2]
    # Not beyond what an H.264 stream may have.
    factor = min(math.ceil(MIN_VIDEO_PX / min(height, width)), max(1, _MAX_VIDEO_PX // max(height, width)))
    if factor > 1:
        frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = frame.shape[:2]
    return np.ascontiguousarray(frame[: height - height % 2, : width - width % 2]).copy()


class _Panels:
    """Captions as half-transparent pictures; the last one is kept, as neighbouring frames share it."""

    def __init__(self) -> None:
        self._key: Any = None
        self._panel = np.zeros((0, 0, 4))

    def burn(self, frame: np.ndarray, caption: Caption) -> None:
        """Draw a caption into the lower left of a frame (H, W, 3) uint8, in place."""
        key = (frame.shape, tuple(caption))
        if key != self._key:
            self._key, self._panel = key, _panel(frame.shape[0], frame.shape[1], caption)
        panel = self._panel[: frame.shape[0]]
        part = frame[frame.shape[0] - panel.shape[0] :, : panel.shape[1]]
        alpha = panel[:, :, 3:] / 255
        part[:] = (part * (1 - alpha) + panel[:, :, :3] * alpha).round().astype(np.uint8)


def _panel(height: int, width: int, caption: Caption) -> np.ndarray:
    """(h, w, 4): a line for each class with a bar behind it; at most 45 % of the frame's height."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(13, round(min(height, width) / 28))
    row, margin = round(size * 1.5), round(size * 0.5)
    shown = caption[: max(1, int(0.45 * height) // row)]
    panel_width = min(width, max(round(width * 0.4), size * 18))
    image = Image.new("RGBA", (panel_width, row * len(shown) + 2 * margin), (0, 0, 0, 150))
    draw = ImageDraw.Draw(image)
    font = functools.cache(lambda path: ImageFont.truetype(path, size))

    def laid_out(text: str) -> list[tuple[float, float, Any, str]]:
        """(start, end, font, piece) of each piece."""
        placed, x = [], 0.0
        for path, piece in pieces(text):
            end = x + draw.textlength(piece, font=font(path))
            placed.append((x, end, font(path), piece))
            x = end
        return placed

    percent_width = laid_out("100.0%")[-1][1]
    room = panel_width - 3 * margin - percent_width
    for place, (name, score) in enumerate(shown):
        top = margin + place * row
        bar = (panel_width - 2 * margin) * min(1.0, max(0.0, score))
        draw.rectangle((margin, top + 1, margin + bar, top + row - 2), fill=(*_BAR_RGB, 230))
        text = drawable(name)
        while len(text) > 1 and laid_out(text)[-1][1] > room:
            text = text[:-2] + "…"
        # Pieces of several fonts stand on one line.
        baseline = top + row / 2 + 0.36 * size
        percent = f"{score:.1%}"
        for left, words in (
            (margin * 1.5, text),
            (panel_width - margin * 1.2 - laid_out(percent)[-1][1], percent),
        ):
            for x, _, its_font, piece in laid_out(words):
                draw.text((left + x, baseline), piece, font=its_font, fill="white", anchor="ls")
    return np.asarray(image, dtype=np.float32)
