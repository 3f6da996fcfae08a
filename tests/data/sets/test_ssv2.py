"""Something-Something: what its reader accepts and reports."""

from __future__ import annotations

import re

import pytest
from annotation_files import dump, records, write

from dtf.data.annotations import WITHHELD
from dtf.data.sets.ssv2 import read_something

LABELS = {"Pushing something from left to right": "1", "Approaching something with your camera": "0"}


def test_something_as_downloaded(tmp_path):
    labels = dump(tmp_path / "something-something-v2-labels.json", LABELS)
    template = "Pushing [something] from left to right"
    train = dump(
        tmp_path / "train.json",
        [{"id": "78687", "label": "pushing a cup", "template": template, "placeholders": ["a cup"]}],
    )
    test = dump(tmp_path / "test.json", [{"id": "1420"}, {"id": "3344"}])
    annotated = read_something(labels, {"train": train, "test": test})
    assert annotated.class_names == sorted(LABELS, key=LABELS.__getitem__)
    assert records(annotated.splits["train"]) == [("78687", 1)]
    assert records(annotated.splits["test"]) == [("1420", WITHHELD), ("3344", WITHHELD)]

    answers = write(tmp_path / "test-answers.csv", "1420;Approaching something with your camera\n")
    answered = read_something(labels, {"test": test}, answers)
    assert records(answered.splits["test"]) == [("1420", 0), ("3344", WITHHELD)]


def test_something_reports_faults_with_line_and_id(tmp_path):
    labels = dump(tmp_path / "labels.json", LABELS)
    template = "Pushing [something] from left to right"
    train = write(
        tmp_path / "train.json",
        '[{"id": "1", "template": "Pushing [something] from left to right"},\n'
        '{"id": "1", "template": "Pushing [something] from left to right"},\n'
        '{"id": "2", "template": "Pushing [something] from left to wrong"},\n'
        '{"id": "3"},\n{"template": "x"},\n[1],\n{"id": "../3", "template": "x"}]',
    )
    val = dump(tmp_path / "val.json", [{"id": 1, "template": template}])
    with pytest.raises(ValueError, match="7 problems") as caught:
        read_something(labels, {"train": train, "val": val})
    text = str(caught.value)
    assert "train.json line 2: 1 was already given in train.json line 1" in text
    assert "val.json line 2: 1 was already given in train.json line" in text
    assert (
        "train.json line 3 (id 2): 'Pushing something from left to wrong' is not one of the 2 classes" in text
    )
    assert "did you mean 'Pushing something from left to right'?" in text
    assert "train.json line 4 (id 3): has no template" in text
    assert "train.json line 5: expected an object with an id" in text
    assert "train.json line 6: expected an object with an id, got a list" in text
    assert "train.json line 7: an id is a number, got '../3'" in text


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "expected an object"),
        ({"a": "0", "b": "2"}, "number '2' is not in 0..1"),
        ({"a": "0", "b": "0"}, "have the same number 0"),
        ({"a": "zero"}, "number 'zero' is not in"),
        ({"a b": "0", "a_b": "1"}, "the same but for blanks"),
        ({"a\nb": "0"}, "empty or unprintable"),
    ],
)
def test_something_needs_sound_labels(tmp_path, labels, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_something(dump(tmp_path / "labels.json", labels), {})


def test_a_class_given_twice_in_the_labels_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="class 'a' occurs twice"):
        read_something(write(tmp_path / "labels.json", '{"a": "0", "a": "1"}'), {})
