"""Readers of the official annotation files: what they accept, what they report, and garbage."""

from __future__ import annotations

import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dtf.data.annotations import (
    WITHHELD,
    read_diving48,
    read_kinetics,
    read_path_lists,
    read_something,
)
from dtf.data.lists import read_list

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
LABELS = {"Pushing something from left to right": "1", "Approaching something with your camera": "0"}
COUNT = 60_000
VOCABULARY = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "PIKE"]]


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def dump(path, value):
    return write(path, json.dumps(value, indent=1))


def records(annotations):
    return list(zip([i.decode() for i in annotations.ids], annotations.labels.tolist(), strict=True))


# ---- Kinetics ----------------------------------------------------------------------------------------------


def test_kinetics_as_downloaded(tmp_path):
    train = write(
        tmp_path / "train.csv",
        HEADER
        + '"passing American football (in game)",-3B32lodo2M,59,69,train,0\n'
        + "abseiling,_dbcJuKJQNs,40,50,train,1\n",
    )
    val = write(tmp_path / "val.csv", HEADER + "abseiling,0wR5jVB-WPk,417,427,val,0\n")
    test = write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n")
    annotated = read_kinetics({"train": train, "val": val, "test": test})
    assert annotated.class_names == ["abseiling", "passing American football (in game)"]
    assert records(annotated.splits["train"]) == [
        ("-3B32lodo2M_000059_000069", 1),
        ("_dbcJuKJQNs_000040_000050", 0),
    ]
    assert records(annotated.splits["val"]) == [("0wR5jVB-WPk_000417_000427", 0)]
    assert records(annotated.splits["test"]) == [("--6bJUbfpnQ_000017_000027", WITHHELD)]
    assert annotated.notes == []


def test_kinetics_tolerates_what_copies_differ_in(tmp_path):
    rows = HEADER + "air drumming,AAAAAAAAAAA,1,11,train,0\n\nair_drumming,BBBBBBBBBBB,2,12,train,0\n"
    rows += '"""air drumming""",CCCCCCCCCCC,3.0,13.0,train,0\n'
    train = write(tmp_path / "train.csv", b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").encode())
    annotated = read_kinetics({"train": train})
    assert annotated.class_names == ["air drumming"]
    assert records(annotated.splits["train"])[2] == ("CCCCCCCCCCC_000003_000013", 0)


def test_kinetics_reports_every_fault_at_once_with_its_line(tmp_path):
    train = write(
        tmp_path / "train.csv",
        HEADER
        + "abseiling,AAAAAAAAAAA,1,11,train,0\n"
        + "abseiling,AAAAAAAAAAA,1,11,train,0\n"  # 3: repeated
        + "abseiling,short,1,11,train,0\n"  # 4
        + "abseiling,BBBBBBBBBBB,11,1,train,0\n"  # 5
        + "abseiling,CCCCCCCCCCC,x,1,train,0\n"  # 6
        + "abseiling,DDDDDDDDDDD,1,11\n"  # 7
        + ",EEEEEEEEEEE,1,11,train,0\n"  # 8
        + 'abseiling,"FFFFFFFFFFF,1,11,train,0\n',  # 9: a quote without an end
    )
    val = write(
        tmp_path / "val.csv",
        HEADER
        + "abseilin,GGGGGGGGGGG,1,11,val,0\n"  # 2: unknown
        + "abseiling,AAAAAAAAAAA,1,11,val,0\n",  # 3: also in train
    )
    with pytest.raises(ValueError, match="9 problems") as caught:
        read_kinetics({"train": train, "val": val})
    text = str(caught.value)
    assert "train.csv line 3: AAAAAAAAAAA_000001_000011 was already given in train.csv line 2" in text
    for line, words in {
        4: "11 letters",
        5: "start < end",
        6: "whole seconds",
        7: "4 columns, the header has 6",
        8: "class name is empty",
        9: "is not CSV",
    }.items():
        assert re.search(rf"train\.csv line {line}: .*{words}", text), line
    assert "val.csv line 2: 'abseilin' is not one of the 1 classes; did you mean 'abseiling'?" in text
    assert re.search(
        r"val\.csv line 3: AAAAAAAAAAA_000001_000011 was already given in train\.csv line \d", text
    )

    faults: list[str] = []
    kept = read_kinetics({"train": train, "val": val}, faults=faults)
    assert len(faults) == 9
    assert records(kept.splits["train"]) == [("AAAAAAAAAAA_000001_000011", 0)]
    assert records(kept.splits["val"]) == []


def test_kinetics_notes_clips_of_one_video(tmp_path):
    rows = "abseiling,AAAAAAAAAAA,1,11,train,0\nabseiling,AAAAAAAAAAA,21,31,train,0\n"
    annotated = read_kinetics({"train": write(tmp_path / "train.csv", HEADER + rows)})
    assert len(annotated.splits["train"]) == 2
    assert annotated.notes == ["1 clips come from a YouTube video that another clip comes from as well"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (HEADER.encode(), "has no row"),
        (b"a,b\n1,2\n", "line 1: the header lacks youtube_id, time_start, time_end"),
        (b"label,youtube_id,time_start,time_end\n\xff\xfe,x,1,2\n", "line 2: is not UTF-8"),
    ],
)
def test_kinetics_files_that_are_none(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        read_kinetics({"train": write(tmp_path / "train.csv", text)})
    with pytest.raises(ValueError, match=r"missing\.csv: cannot be read"):
        read_kinetics({"train": tmp_path / "missing.csv"})


def test_a_long_list_of_faults_is_cut(tmp_path):
    rows = "".join(f"c,{'x' * 5000}{i},1,2,train,0\n" for i in range(300))
    with pytest.raises(ValueError, match="300 problems") as caught:
        read_kinetics({"train": write(tmp_path / "train.csv", HEADER + rows)})
    assert "... and 28" in str(caught.value)
    assert len(str(caught.value)) < 10_000


# ---- Something-Something -----------------------------------------------------------------------------------


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


# ---- Diving48 ----------------------------------------------------------------------------------------------


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


# ---- JSON, lists of paths, memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: expected a JSON list"),
        ("{}", "line 1: expected a JSON list"),
        ("[]", "lists no video"),
        ('[\n{"vid_name": 1},\n{"vid', "line 3: is not JSON"),
        ("[" * 100_000, "not usable JSON"),
        ("[" + "9" * 5000 + "]", "not usable JSON"),
        ('[\n{"label": 1}\n] x', "line 3: is not JSON"),
        ('[{"label": 1} {"label": 1}]', "line 1: is not JSON"),
    ],
)
def test_json_that_is_none(tmp_path, text, reason):
    vocabulary = dump(tmp_path / "vocab.json", VOCABULARY)
    with pytest.raises(ValueError, match=reason):
        read_diving48(vocabulary, {"train": write(tmp_path / "train.json", text)})


def test_path_lists_name_videos_by_the_last_part_of_the_path(tmp_path):
    listed = write(
        tmp_path / "train.txt", "/data/k400/air drumming/-3B32lodo2M_000059_000069.mp4 1\nx/7 300 0\n"
    )
    with pytest.raises(ValueError, match=r"train\.txt line 2: 3 columns"):
        read_path_lists({"train": listed})
    listed = write(tmp_path / "train.txt", "K/air_drumming/-3B32lodo2M_000059_000069 299 1\nK/b/7 300 0\n")
    annotated = read_path_lists({"train": listed})
    assert records(annotated.splits["train"]) == [("-3B32lodo2M_000059_000069", 1), ("7", 0)]
    assert annotated.class_names == ["0", "1"]
    with pytest.raises(ValueError, match=r"train\.txt line 1: label 1 is out of range 0\.\.0"):
        read_path_lists({"train": listed}, ["only"])
    listed = write(tmp_path / "train.txt", "a 1\nb 99999999\n")
    with pytest.raises(ValueError, match=r"train\.txt line 2: label 99999999 is too large for a list of 2"):
        read_path_lists({"train": listed})


def test_memory_of_many_records_is_small(tmp_path):
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", "S1")
    ids = rng.choice(letters, (COUNT, 11)).view("S11").ravel().astype(str).tolist()
    rows = "".join(f"class {i % 400:03d},{video},5,15,train,0\n" for i, video in enumerate(ids))
    train = write(tmp_path / "train.csv", HEADER + rows)
    del rows, ids
    tracemalloc.start()
    try:
        annotated = read_kinetics({"train": train})
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(annotated.splits["train"]) == COUNT
    assert len(annotated.class_names) == 400
    assert kept < 60 * COUNT  # bytes
    assert peak < 700 * COUNT  # 168 MB for Kinetics


# ---- garbage -----------------------------------------------------------------------------------------------

CELL = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["abseiling", "AAAAAAAAAAA", "-_-_-_-_-_-", "1", "11", "label", "youtube_id", '"', "\ufeff"]
    ),
)
CSV = st.builds(
    lambda header, rows: (HEADER if header else "") + "\n".join(",".join(row) for row in rows),
    st.booleans(),
    st.lists(st.lists(CELL, max_size=7), max_size=6),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["id", "template", "label", "vid_name", "start_frame", "end_frame"]),
                st.text(max_size=4),
            ),
            children,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
BYTES = st.one_of(
    st.binary(max_size=200),
    CSV.map(lambda text: text.encode("utf-8", "replace")),
    st.builds(lambda v, i: json.dumps(v, indent=i).encode(), JSON, st.sampled_from([None, 1])),
    st.builds(lambda v, k: json.dumps(v).encode()[:k], st.lists(JSON, max_size=4), st.integers(0, 80)),
)
FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def check(read, *sources):
    """Records, or a ValueError of bounded length that names one of the files."""
    text, annotated = None, None
    try:
        annotated = read()
    except ValueError as error:
        text = str(error)
    if annotated is None:
        assert any(source in text for source in sources), text
        assert len(text) < 20_000
        assert text.replace("\n", "").isprintable()
        return
    for split in annotated.splits.values():
        assert len(split.ids) == len(set(split.ids.tolist())) == len(split.labels)
        assert ((split.labels == WITHHELD) | (split.labels < len(annotated.class_names))).all()
        assert all(re.fullmatch(rb"[A-Za-z0-9_-]+", name) for name in split.ids)


@FUZZ
@given(BYTES)
@example(HEADER.encode() + b"a\0b,AAAAAAAAAAA,1,2,t,0\n")
@example(b"\xef\xbb\xbf\n")
def test_fuzz_kinetics(tmp_path, data):
    path = write(tmp_path / "train.csv", data)
    check(lambda: read_kinetics({"train": path}), "train.csv")


@FUZZ
@given(BYTES)
def test_fuzz_something(tmp_path, data):
    path = write(tmp_path / "fuzz.json", data)
    labels = dump(tmp_path / "labels.json", LABELS)
    check(lambda: read_something(labels, {"train": path}), "fuzz.json")
    check(lambda: read_something(labels, {"test": path}), "fuzz.json")
    check(lambda: read_something(path, {}), "fuzz.json")
    test = dump(tmp_path / "test.json", [{"id": "1"}])
    check(lambda: read_something(labels, {"test": test}, path), "fuzz.json")


@FUZZ
@given(BYTES)
def test_fuzz_diving48(tmp_path, data):
    path = write(tmp_path / "fuzz.json", data)
    check(lambda: read_diving48(dump(tmp_path / "vocab.json", VOCABULARY), {"train": path}), "fuzz.json")
    check(lambda: read_diving48(path, {}), "fuzz.json")


@FUZZ
@given(BYTES)
def test_fuzz_path_lists(tmp_path, data):
    path = write(tmp_path / "fuzz.txt", data)
    check(lambda: read_path_lists({"train": path}), "fuzz.txt")
    faults: list[str] = []
    index = read_list(tmp_path, "fuzz.txt", None, faults)
    assert all(fault.startswith("fuzz.txt") for fault in faults)
    assert all(index.path(i).startswith(f"{tmp_path}/") for i in range(len(index)))
