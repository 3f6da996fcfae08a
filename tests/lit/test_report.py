"""The files of a result."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dtf.files import write_json
from dtf.lit.report import print_results, result_rows
from dtf.lit.tasks.classification import Classification, Evaluation, draw_confusion, results, write_scores


def evaluation() -> Evaluation:
    scores = np.array([[0.7, 0.3], [np.nan, np.nan], [0.4, 0.6]])
    index = np.array([0, 4, 9])
    return Evaluation(index, np.array([0, 1, 0]), scores, np.array([3, 3, 3]), {4: "b.mp4: is empty"})


def test_scores_file(tmp_path: Path) -> None:
    paths = ["a, b.mp4", "odd \udcff name.mp4", 'q"uote.mp4']
    write_scores(tmp_path / "scores.csv", evaluation(), ["up", "down"], paths)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8")))
    assert [row["video"] for row in rows] == ["a, b.mp4", "odd \\udcff name.mp4", 'q"uote.mp4']
    assert [row["prediction"] for row in rows] == ["up", "", "down"]
    assert [row["right"] for row in rows] == ["1", "0", "0"]
    assert [row["score:up"] for row in rows] == ["0.7", "", "0.4"]
    assert rows[1]["error"] == "b.mp4: is empty"


def test_results_file(tmp_path: Path) -> None:
    found = results(evaluation(), ["up", "down"], ["a", "b", "c"])
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["confused_pairs"] == [{"class": "up", "taken_for": "down", "videos": 1}]
    assert found["per_class"]["up"] == {"videos": 2, "right": 1, "accuracy": 0.5}
    write_json(tmp_path / "r.json", found)
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_class_without_videos() -> None:
    found = results(evaluation(), ["up", "down"], ["a", "b", "c"])
    assert found["per_class"]["down"]["accuracy"] == 0
    three = Evaluation(np.array([0]), np.array([0]), np.array([[1.0, 0, 0]]), np.array([1]), {})
    assert results(three, ["a", "b", "c"], ["x"])["per_class"]["c"]["accuracy"] is None


@pytest.mark.parametrize("num_classes", [2, 10, 120])
def test_confusion_picture(tmp_path: Path, num_classes: int) -> None:
    generator = np.random.default_rng(0)
    matrix = np.diag(generator.integers(5, 50, num_classes))
    matrix[0, 1] = 3
    # A folder's name may hold anything.
    names = [f"class number {i} $x_{{$ \udcff\x1b" for i in range(num_classes)]
    draw_confusion(tmp_path / "c.png", matrix, names, "title")
    picture = imread(tmp_path / "c.png")
    assert min(picture.shape[:2]) > (1000 if num_classes == 120 else 150)


def test_the_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"kind": "picture", **results(evaluation(), ["[bold]up", "do\x1b[31mwn"], ["a", "b", "c"])}
    rows = result_rows(Classification, evaluation(), found)
    print_results("title", rows, [("where", "/a[b]")])
    out = capsys.readouterr().out
    assert "[bold]up" in out
    assert "\x1b[31m" not in out
    assert "/a[b]" in out
    assert "33.33%" in out
    assert re.search(r"pictures +│ 3, ", out)
    assert "b.mp4: is empty" in out
