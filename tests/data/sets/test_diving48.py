"""Diving48: what its reader accepts and reports."""

from __future__ import annotations

import pytest
from annotation_files import dump, records

from dtf.data.sets.diving48 import read_diving48

VOCABULARY = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "PIKE"]]


def dive(name="_8Vy3dlHg2w_00000", label=1, start=0, end=100):
    return {"vid_name": name, "label": label, "start_frame": start, "end_frame": end}


def test_diving48_as_downloaded_keeps_classes_without_a_video(tmp_path):
    vocabulary = dump(tmp_path / "Diving48_vocab.json", VOCABULARY)
    train = dump(tmp_path / "train.json", [dive(), dive("a_b_c-d_e_f_00017", 1)])
    annotated = read_diving48(vocabulary, {"train": train})
    assert annotated.class_names == ["Back 15som 05Twis FREE", "Inward 25som NoTwis PIKE"]
    assert records(annotated.splits["train"]) == [("_8Vy3dlHg2w_00000", 1), ("a_b_c-d_e_f_00017", 1)]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (dive(label=2), r"line 2 \(_8Vy3dlHg2w_00000\): label '2' is out of range 0..1"),
        (dive(label=-1), "label '-1' is out of range"),
        (dive(label="1"), "label must be a whole number"),
        (dive(label=True), "label must be a whole number"),
        (dive("_8Vy3dlHg2w"), "vid_name must be"),
        (dive("../x_00000"), "vid_name must be"),
        (dive(start=5, end=5), "are no range"),
        ({"label": 1}, "expected an object with vid_name"),
        ("x", "expected an object with vid_name, got 'x'"),
    ],
)
def test_diving48_faults(tmp_path, entry, reason):
    vocabulary = dump(tmp_path / "vocab.json", VOCABULARY)
    with pytest.raises(ValueError, match=reason):
        read_diving48(vocabulary, {"train": dump(tmp_path / "train.json", [entry])})


@pytest.mark.parametrize("words", [[], [["Back", 1]], [["a"], ["a"]], {"0": ["a"]}, [["a\n"], ["\x07"]]])
def test_diving48_needs_a_sound_vocabulary(tmp_path, words):
    with pytest.raises(ValueError, match=r"vocab\.json: "):
        read_diving48(dump(tmp_path / "vocab.json", words), {})
