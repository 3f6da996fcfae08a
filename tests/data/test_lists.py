"""Folder trees and list files: what is read, and every fault with its line."""

from __future__ import annotations

import os

import pytest

from dtf.data import bounds
from dtf.data.lists import VideoIndex, index_folder, raise_faults, read_list


def touch(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rows(index: VideoIndex) -> list[tuple[str, int]]:
    return [(index.relative_path(i), int(index.labels[i])) for i in range(len(index))]


def test_index_keeps_any_name(tmp_path):
    names = ["a.mp4", "ä b/ü.mp4", os.fsdecode(b"caf\xe9.mp4"), "-x (1).mp4"]
    index = VideoIndex(tmp_path, names, range(4))
    assert rows(index) == list(zip(names, range(4), strict=True))
    assert index.path(1) == str(tmp_path / "ä b" / "ü.mp4")


def test_folder(tmp_path):
    touch(
        tmp_path / "train/b/2.MP4",
        tmp_path / "train/b/10.webm",
        tmp_path / "train/a b/x.avi",
        tmp_path / "train/b/notes.txt",
        tmp_path / "train/b/._2.mp4",
        tmp_path / "train/.cache/x.mp4",
        tmp_path / "train/stray.mp4",
    )
    faults: list[str] = []
    index = index_folder(tmp_path, "train", ["a b", "b", "c"], faults)
    assert rows(index) == [("train/a b/x.avi", 0), ("train/b/10.webm", 1), ("train/b/2.MP4", 1)]
    assert not faults


def test_folder_faults(tmp_path):
    touch(tmp_path / "val/a/x.mp4", tmp_path / "val/odd/x.mp4", tmp_path / "val/bare/readme.txt")
    faults: list[str] = []
    index = index_folder(tmp_path, "val", ["a", "bare"], faults)
    assert rows(index) == [("val/a/x.mp4", 0)]
    assert len(faults) == 2
    assert "val/bare: holds no video" in faults[0]
    assert "val/odd: not one of the 2 classes" in faults[1]
    (tmp_path / "test").mkdir()
    faults = []
    index_folder(tmp_path, "test", ["a"], faults)
    assert faults == ["test: is empty, expected test/CLASS/*.mp4"]


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 0\nb c.mp4 1\n",
        "\ufeffa.mp4 0\r\n\r\nb c.mp4 1\r\n",
        "a.mp4,0\nb c.mp4,1\n",
        'path,label\n"a.mp4",0\n"b c.mp4", 1',
        "path label\na.mp4 zero\nb c.mp4 one",
        "a.mp4\t0\nb c.mp4\t1\n",
        "a.mp4,zero\nsub/../b c.mp4,one\n",
    ],
)
def test_lists_of_the_field(tmp_path, text):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
    faults: list[str] = []
    index = read_list(tmp_path, "list.txt", ["zero", "one"], faults)
    assert not faults
    assert rows(index) == [("a.mp4", 0), ("b c.mp4", 1)]


def test_absolute_paths_inside_root(tmp_path):
    (tmp_path / "list.txt").write_text(f"{tmp_path}/sub/a.mp4 3\n")
    faults: list[str] = []
    assert rows(read_list(tmp_path, "list.txt", None, faults)) == [("sub/a.mp4", 3)]
    assert not faults


def test_labels_are_bounded_by_the_list(tmp_path, monkeypatch):
    """Every number below the largest label would become a class: 99999999 took 8 GB."""
    (tmp_path / "list.txt").write_text("a.mp4 0\n\nx.mp4 99999999\nb.mp4 9999\n")
    faults: list[str] = []
    read_list(tmp_path, "list.txt", None, faults)
    assert faults == [
        "list.txt line 3: label 99999999 is too large for a list of 3 videos (allowed: below 10000; more "
        "with a list of class names)"
    ]
    monkeypatch.setattr(bounds, "MAX_SPARSE_CLASSES", 2)
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 2\n")  # as many classes as videos
    faults = []
    assert read_list(tmp_path, "list.txt", None, faults).labels.max() == 2
    assert not faults


def test_every_fault_has_its_line(tmp_path):
    lines = [
        "ok.mp4 0",
        "no_label.mp4",
        "a.mp4 -1",
        "b.mp4 7",
        "c.mp4 walk",
        "../out.mp4 0",
        "/etc/passwd 0",
        "ok.mp4 1",
        "d.mp4,0",
        "frames/dir 120 1",
        "sub/../../out.mp4 0",
        "fine.mp4 1",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    faults: list[str] = []
    index = read_list(tmp_path, "list.txt", ["x", "y"], faults)
    assert rows(index) == [("ok.mp4", 0), ("fine.mp4", 1)]
    expected = {
        2: "expected `path label`",
        3: "label '-1' is not a whole number",
        4: "label 7 is out of range 0..1",
        5: "label 'walk' is not",
        6: "not inside the data folder",
        7: "not inside the data folder",
        8: "already given in line 1",
        9: "separated by comma",
        10: "3 columns",
        11: "not inside the data folder",
    }
    assert len(faults) == len(expected)
    for (number, reason), fault in zip(expected.items(), faults, strict=True):
        assert fault.startswith(f"list.txt line {number}: "), fault
        assert reason in fault


def test_several_labels_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 1,3\nb c.mp4 30 0,2,1\nd.mp4 1\n")
    faults: list[str] = []
    assert rows(read_list(tmp_path, "list.txt", None, faults)) == [("d.mp4", 1)]
    assert faults == [
        "list.txt line 1: several labels, a video has one class: 'a.mp4 1,3'",
        "list.txt line 2: several labels, a video has one class: 'b c.mp4 30 0,2,1'",
    ]
    (tmp_path / "list.txt").write_text("clip 1,3\n")
    assert rows(read_list(tmp_path, "list.txt", None, [])) == [("clip 1", 3)]


def test_empty_list(tmp_path):
    (tmp_path / "list.txt").write_text("\n\n")
    faults: list[str] = []
    read_list(tmp_path, "list.txt", None, faults)
    assert faults == ["list.txt: lists no video"]


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.mp4 0\n")
    faults: list[str] = []
    index = read_list(tmp_path, "list.txt", None, faults)
    assert not faults
    assert os.fsencode(index.relative_path(0)) == b"caf\xe9.mp4"


def test_raise_faults_cuts_long_lists():
    raise_faults("x", [])
    with pytest.raises(ValueError, match=r"^x: one$"):
        raise_faults("x", ["one"])
    with pytest.raises(ValueError, match=r"x: 30 problems\n  f0\n") as caught:
        raise_faults("x", [f"f{i}" for i in range(30)])
    assert str(caught.value).endswith("... and 10 more")
