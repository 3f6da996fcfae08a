"""Names in every script are drawn with the fonts of the machine, without warnings."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image

from dtf.apply.explain import Clip
from dtf.apply.sliding import Window
from dtf.layers.temporal import Maps
from dtf.lit.tasks.classification import draw_confusion
from dtf.runs.compared import Comparison, Run
from dtf.runs.measure import measures
from dtf.view import annotate as draw
from dtf.view import compared, explain, figures, pictures

# Signs that DejaVu Sans lacks: the first is in a font that matplotlib ships beside it, the second in none.
RARE, NOWHERE = "\U0001d6a4\u20e8", "日"
NAME = f"a {RARE} {NOWHERE} $x"


@pytest.fixture(autouse=True)
def fonts(monkeypatch: pytest.MonkeyPatch):
    """A machine with one font beside the base; a glyph that is missing from a picture is an error."""
    stix = figures.Font("STIXGeneral", str(findfont("STIXGeneral")))
    monkeypatch.setattr(figures, "_installed", lambda: [stix])
    figures._fonts.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield stix
    figures._fonts.cache_clear()


def test_signs_of_several_fonts(fonts: figures.Font) -> None:
    lacking = [c for c in RARE if c not in figures._fonts().chosen[0].among(RARE)]
    assert lacking, "choose other signs: the base has them now"
    assert fonts.among(RARE + NOWHERE) == set(RARE)
    assert figures.drawable(NAME) == f"a {RARE} □ $x"
    assert [font.family for font in figures._fonts().chosen] == ["DejaVu Sans", "STIXGeneral"]
    found = figures.pieces(figures.drawable(NAME))
    assert "".join(piece for _, piece in found) == f"a {RARE} □ $x"
    assert {path for path, _ in found} == {font.path for font in figures._fonts().chosen}


def test_one_line_of_the_log_for_all_boxes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert figures.drawable("日本\x1b") == "□□\\x1b"
        assert figures.drawable("中文") == "□□"
    [line] = caplog.messages
    assert "fonts-noto-cjk" in line
    assert "日 (U+65E5)" in line


def test_names_are_cut_and_measured() -> None:
    assert figures.drawable("abcdef", 4) == "abc…"
    assert figures.columns("日本 a") == 6


def test_fonts_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = figures._installed()
    assert len({font.family for font in found}) == len(found)
    assert not any("last resort" in font.family.lower() for font in found)
    assert all(Path(font.path).is_file() for font in found)
    assert "STIXGeneral" in {font.family for font in found}


def drawn_with_fallback() -> None:
    assert len(figures._fonts().chosen) == 2


def test_every_picture_uses_them(tmp_path: Path) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    names = [f"{NAME} {k}" for k in range(3)]
    draw_confusion(tmp_path / "confusion.png", np.eye(3, dtype=int), names, NAME)
    drawn_with_fallback()
    pictures.to_png(pictures.confusion_overview(np.eye(3, dtype=int), NAME))
    pictures.to_svg(pictures.filters_figure({NAME: {NAME: 1.0}}, NAME, NAME))
    draw.draw_prediction(tmp_path / "a.png", f"{NAME}.mp4", frames, [(NAME, 0.5)])
    windows = [Window(k, k + 2, k, k + 2) for k in range(3)]
    draw.draw_timeline(tmp_path / "b.png", NAME, windows, np.eye(3), names, frames)
    clip = Clip(frames, np.arange(4), np.arange(4.0))
    maps = Maps("frequency", "energy", torch.ones(1, 3, 2, 2), ("0", "1", "2"))
    explain.draw_layers(tmp_path / "c.png", NAME, clip, {NAME: maps})
    explain.draw_grad_cam(tmp_path / "d.png", NAME, clip, torch.ones(4, 2, 2), NAME)
    settings = {"optim.lr": "0.1", "model": NAME}
    runs = [Run(tmp_path / NAME, "finished", "", {"top1": 0.5}, {}, settings=settings)]
    compared.draw(tmp_path / "e.png", Comparison(tmp_path / NAME, runs, measures(None), "val/top1"))
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_the_glyphs_are_in_the_picture() -> None:
    def png(name: str) -> np.ndarray:
        figure = figures.new_figure(2, 1)
        figure.text(0.1, 0.5, figures.drawable(name), parse_math=False)
        file = io.BytesIO()
        figures.save(figure, file)
        return np.asarray(Image.open(file).convert("L"))

    assert not np.array_equal(png(RARE[1] + "b"), png(NOWHERE + "b"))


def test_captions_of_videos_use_them() -> None:
    with_glyphs = draw._panel(256, 512, [(f"a{RARE}", 0.5)])
    with_box = draw._panel(256, 512, [(f"a{NOWHERE}", 0.5)])
    assert with_glyphs.shape == with_box.shape
    assert not np.array_equal(with_glyphs, with_box)
    assert draw._panel(256, 60, [(NAME * 9, 0.5)]).shape[1] == 60
