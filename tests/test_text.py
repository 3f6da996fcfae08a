"""Foreign text is harmless in every place where it is shown."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dtf import text
from dtf.data.prepare.results import csv_row
from dtf.errors import RunError
from dtf.lit.report import print_results, result_rows
from dtf.lit.tasks.classification import Classification, Evaluation, results, write_scores
from dtf.runs.errors import one_line_errors
from dtf.runs.options import FileNames

HOSTILE = '=HYPERLINK("http://x")\x1b[2J[bold]\n/../\udcff'


def test_one_line_that_any_terminal_takes() -> None:
    assert text.printable("日本 é") == "日本 é"
    assert text.printable("a\x1b[31m\nb\udcff\u202e") == "a\\x1b[31m\\nb\\udcff\\u202e"
    assert text.printable_lines("a\x1b\nb") == "a\\x1b\nb"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("=1+1", "'=1+1"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "\\t=1"),
        ("\uff1d1", "'\uff1d1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-a_b-c00000_00000", "-a_b-c00000_00000"),
        ("+1.mp4", "'+1.mp4"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(given: str, written: str) -> None:
    assert text.cell(given) == written


def test_file_names() -> None:
    assert text.file_name(HOSTILE, 200) == "_HYPERLINK_http_x_x1b_2J_bold_n_.._udcff"
    assert text.file_name("日" * 9, 7) == "日日"
    assert text.file_name("..", 9) == ""


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("from the checkpoint: %s, %d", (HOSTILE, 3)),
        ("from the checkpoint: %s, %.0f", (RunError(HOSTILE), 3.0)),
        ("from the checkpoint: %(a)s, 3", ({"a": HOSTILE.replace("\n", "\\n")},)),
    ],
)
def test_a_log_keeps_its_lines(message: str, arguments: tuple) -> None:
    logger, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        text.escape_logs()
        logging.getLogger("dtf.any").warning(message, *arguments)
        logging.getLogger("dtf.any").warning("two\nlines, %d %%", 5)
    finally:
        logger.removeHandler(handler)
    first, *rest = stream.getvalue().splitlines()
    assert first == f"from the checkpoint: {text.printable(HOSTILE)}, 3"
    assert rest == ["two", "lines, 5 %"]


def test_a_hostile_name_in_what_commands_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = np.arange(2)
    scores = np.array([[0.9, 0.1], [np.nan, np.nan]])
    found = Evaluation(index, np.array([0, 1]), scores, np.ones_like(index), {1: HOSTILE})
    names, paths = [HOSTILE, "b"], [HOSTILE, f"/{HOSTILE}"]
    write_scores(tmp_path / "scores.csv", found, names, paths)
    table = {"kind": "video", **results(found, names, paths)}
    rows = result_rows(Classification, found, table)  # type: ignore[arg-type]
    print_results("title", rows, [("where", HOSTILE)])
    Console().print(text.markup(HOSTILE))
    with pytest.raises(SystemExit), one_line_errors():
        raise RunError(HOSTILE)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "[bold]" in shown.out
    assert shown.err.count("\n") == 1
    (tmp_path / "excluded.csv").write_text(csv_row("train", "name", HOSTILE, HOSTILE), "utf-8")
    for file in tmp_path.glob("*.csv"):
        written = file.read_text("utf-8")
        assert "\x1b" not in written
        cells = [cell for row in csv.reader(io.StringIO(written)) for cell in row]
        assert cells.count(text.cell(HOSTILE)) >= 2
        assert not any(cell.startswith(("=", "@")) for cell in cells)
    assert "/" not in FileNames().stem(HOSTILE)
