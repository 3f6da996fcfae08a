"""Kinetics: what its reader accepts and reports."""

from __future__ import annotations

import re

import pytest
from annotation_files import HEADER, records, write

from dtf.data.annotations import WITHHELD
from dtf.data.sets.kinetics import read_kinetics


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
