"""A data set of one's own: one file that registers it, here this one."""

from __future__ import annotations

import pytest
from prepared import read_lists

from dtf.data.annotations import AnnotatedSet, Rows, annotation_text, join, read_class_list
from dtf.data.prepare import check, main
from dtf.data.sets.data_set import DATA_SETS, DataSet, register


def read(splits, files, faults):
    """Lines of `class|name`."""
    class_names = read_class_list(files["labels"])
    rows = {}
    for split, path in splits.items():
        rows[split] = Rows(path.name)
        for number, line in enumerate(annotation_text(path).splitlines(), 1):
            name, _, video = line.partition("|")
            if name in class_names:
                rows[split].add(video, class_names.index(name), number)
            else:
                faults.append(f"{path.name} line {number}: {name!r} is no class")
    return AnnotatedSet(class_names, join(rows, {}, faults))


TOY = DataSet(
    title="Toys",
    num_classes=2,
    official={"train": 2, "test": 1},
    files={"train": r"toys_train\.txt", "test": r"toys_test\.txt", "labels": r"toys\.names"},
    options={"labels": "names of the classes"},
    required="labels",
    example="toy-1.mp4",
    read=read,
    read_class_names=read_class_list,
    is_annotation=lambda path: "|" in path.read_text(),
    key=lambda stem: stem.removeprefix("toy-"),
)


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """The data set, registered, and its folder; its videos are never opened."""
    register("toys", TOY)
    found = {"frames": 9, "fps": 25.0, "width": 64, "height": 48, "rotation": 0, "damaged": 0}
    monkeypatch.setattr(check, "run_isolated", lambda _, jobs, **__: ((job, found) for job in jobs))
    (tmp_path / "toys.names").write_text("car\nball\n")
    (tmp_path / "toys_train.txt").write_text("ball|1\ncar|2\n")
    (tmp_path / "toys_test.txt").write_text("car|3\n")
    for number in (1, 2, 3):
        (tmp_path / f"toy-{number}.mp4").touch()
    yield tmp_path
    del DATA_SETS["toys"]


def test_a_registered_data_set_is_prepared(toys, capsys):
    assert main(["toys", str(toys)]) == 0
    lists = {"train": ["toy-1.mp4 1", "toy-2.mp4 0"], "test": ["toy-3.mp4 0"]}
    assert read_lists(toys, ("train", "test")) == lists
    with pytest.raises(SystemExit):
        main(["toys", "--help"])
    assert "names of the classes" in capsys.readouterr().out


def test_its_faults_are_named_or_skipped(toys, capsys):
    (toys / "toys_test.txt").write_text("car|3\nplane|4\n")
    assert main(["toys", str(toys)]) == 1
    assert "toys_test.txt line 2: 'plane' is no class" in capsys.readouterr().err
    assert main(["toys", str(toys), "--skip-bad-rows"]) == 0
    (toys / "toys.names").unlink()
    assert main(["toys", str(toys)]) == 1
    assert r"no file toys\.names found; --labels FILE says where it is" in capsys.readouterr().err


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is a data set 'k400' already: Kinetics-400"):
        register("k400", TOY)
