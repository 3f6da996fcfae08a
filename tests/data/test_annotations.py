"""Annotations of every data set: JSON, lists of paths, memory and garbage."""

from __future__ import annotations

import json
import re
import tracemalloc

import numpy as np
import pytest
from annotation_files import HEADER, dump, records, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dtf.data.annotations import WITHHELD, read_path_lists
from dtf.data.lists import read_list
from dtf.data.sets.diving48 import read_diving48
from dtf.data.sets.kinetics import read_kinetics
from dtf.data.sets.ssv2 import read_something

LABELS = {"Pushing something from left to right": "1", "Approaching something with your camera": "0"}
COUNT = 60_000
VOCABULARY = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "PIKE"]]


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


@pytest.mark.slow
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


@pytest.mark.slow
@FUZZ
@given(BYTES)
@example(HEADER.encode() + b"a\0b,AAAAAAAAAAA,1,2,t,0\n")
@example(b"\xef\xbb\xbf\n")
def test_fuzz_kinetics(tmp_path, data):
    path = write(tmp_path / "train.csv", data)
    check(lambda: read_kinetics({"train": path}), "train.csv")


@pytest.mark.slow
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


@pytest.mark.slow
@FUZZ
@given(BYTES)
def test_fuzz_diving48(tmp_path, data):
    path = write(tmp_path / "fuzz.json", data)
    check(lambda: read_diving48(dump(tmp_path / "vocab.json", VOCABULARY), {"train": path}), "fuzz.json")
    check(lambda: read_diving48(path, {}), "fuzz.json")


@pytest.mark.slow
@FUZZ
@given(BYTES)
def test_fuzz_path_lists(tmp_path, data):
    path = write(tmp_path / "fuzz.txt", data)
    check(lambda: read_path_lists({"train": path}), "fuzz.txt")
    faults: list[str] = []
    index = read_list(tmp_path, "fuzz.txt", None, faults)
    assert all(fault.startswith("fuzz.txt") for fault in faults)
    assert all(index.path(i).startswith(f"{tmp_path}/") for i in range(len(index)))
