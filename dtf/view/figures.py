"""Figures apart from pyplot's global state, and fonts for names in every script.

matplotlib draws with DejaVu Sans, which it ships and which has no Chinese, Japanese or Korean and few emoji.
`drawable` finds fonts of this machine for what is missing, `save` lets the figure use them.
"""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dtf.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry

_BASE = "DejaVu Sans"
_BOX = "□"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Font:
    """A font file of this machine.

    Attributes:
        family: its name.
        path: of the file.
    """

    family: str
    path: str

    @functools.cached_property
    def signs(self) -> np.ndarray:
        """Code points that it has, ascending."""
        from matplotlib.ft2font import FT2Font

        return np.sort(np.fromiter(FT2Font(self.path).get_charmap(), dtype=np.int64))

    def among(self, signs: Iterable[str]) -> set[str]:
        """Those of the signs that it has."""
        signs = list(signs)
        found = np.isin([ord(c) for c in signs], self.signs).tolist()
        return {c for c, has in zip(signs, found, strict=True) if has}


class _Fonts:
    """The fonts in use: the base, and what was found for the signs that it lacks."""

    def __init__(self, base: Font) -> None:
        self.chosen = [base]
        self.font_of: dict[str, Font | None] = {}

    def look_for(self, signs: set[str]) -> None:
        """Choose fonts for signs; None for those that no font has, of which the log tells once."""
        new = signs - self.font_of.keys()
        for font in self.chosen:
            self._take(font, new)
        # The fewest fonts: names then look alike.
        for font in sorted(_installed(), key=lambda f: -len(f.among(new))) if new else []:
            if self._take(font, new):
                self.chosen.append(font)
        if new:
            if None not in self.font_of.values():
                log.warning(
                    "no font here can draw %s: pictures show %s in its place; install fonts, for example "
                    "fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-symbola (emoji)",
                    " ".join(f"{c} (U+{ord(c):04X})" for c in sorted(new)[:3]),
                    _BOX,
                )
            self.font_of.update(dict.fromkeys(new))

    def _take(self, font: Font, new: set[str]) -> bool:
        found = font.among(new)
        self.font_of.update(dict.fromkeys(found, font))
        new -= found
        return bool(found)


@functools.cache
def _fonts() -> _Fonts:
    from matplotlib.font_manager import FontProperties, findfont

    return _Fonts(Font(_BASE, str(findfont(FontProperties(family=_BASE)))))


@functools.cache
def _installed() -> list[Font]:
    """An upright font of each family that matplotlib can draw with, those without serifs first."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    # matplotlib keeps its list for good: fonts that were installed later are not in it.
    for path in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(path)
        except Exception as error:  # whatever is wrong with a font, there are others
            log.debug("%s: %s", path, error)
    families: dict[str, FontEntry] = {}
    for entry in sorted(fontManager.ttflist, key=_distance_from_regular):
        first_face = getattr(entry, "index", 0) == 0  # what `Font.signs` and Pillow open
        # "Last resort" fonts have a picture of a missing sign for every sign.
        if entry.style == "normal" and first_face and "last resort" not in entry.name.lower():
            families.setdefault(entry.name, entry)
    order = sorted(families, key=lambda name: ("mono" in name.lower(), "sans" not in name.lower(), name))
    return [Font(name, str(families[name].fname)) for name in order]


def _distance_from_regular(entry: FontEntry) -> int:
    from matplotlib.font_manager import weight_dict

    weight = entry.weight
    return abs((weight if isinstance(weight, int) else weight_dict.get(weight, 1000)) - 400)


def drawable(text: str, limit: int | None = None) -> str:
    """Foreign text as pictures show it: one line, a box for each sign that no font here has.

    Args:
        text: a name from a file.
        limit: more signs than that are cut off.
    """
    text = printable(text)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii():
        return text
    fonts = _fonts()
    fonts.look_for(set(text))
    return "".join(c if fonts.font_of[c] else _BOX for c in text)


def columns(text: str) -> int:
    """The width of a text in letters: signs of East Asia are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pieces(text: str) -> list[tuple[str, str]]:
    """A `drawable` text in pieces of one font each, for Pillow: (path of the font, piece)."""
    fonts = _fonts()
    fonts.look_for(set(text))

    def path(sign: str) -> str:
        return (fonts.font_of[sign] or fonts.chosen[0]).path

    return [(font, "".join(signs)) for font, signs in groupby(text, path)]


def new_figure(width: float, height: float, layout: Any = None) -> Figure:
    """A figure of this size in inches; `layout` as in matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def save(figure: Figure, file: str | Path | IO[bytes], kind: str = "png", dpi: int = 100) -> None:
    """Write a figure in the fonts that its texts need.

    Args:
        figure: its foreign texts went through `drawable`.
        file: a path, or a file open for writing bytes.
        kind: "png" or "svg".
        dpi: dots per inch of a PNG.
    """
    from matplotlib.text import Text

    families = [font.family for font in _fonts().chosen]
    if len(families) > 1:
        for text in figure.findobj(Text):
            text.set_fontfamily(families)
    figure.savefig(file, format=kind, dpi=dpi)


def spread(total: int, most: int) -> np.ndarray:
    """At most so many of `total` places, evenly spread from the first to the last: ascending int."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
