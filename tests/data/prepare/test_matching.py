"""Which file is taken for an annotated video."""

from __future__ import annotations

import json

import pytest
from prepared import A, B, C, D, first_numbers, kinetics

from dtf.data.prepare import main


@pytest.mark.slow
def test_of_two_files_the_replacement_then_the_right_folder_is_taken(tmp_path):
    root = kinetics(
        tmp_path / "k",
        [("a", A), ("b", B), ("b", C)],
        {
            f"train/a/{A}_000000_000010.mp4": 1,
            f"replacement_for_corrupted/{A}_000000_000010.mp4": 2,
            f"val/b/{B}_000000_000010.mp4": 3,
            f"train/b/{B}_000000_000010.mp4": 4,
            f"train/a/{C}_0_10.mp4": 5,  # seconds without zeros, in the folder of another class
            f"more/{D}_000000_000010.mp4": 6,  # not annotated
            f"train/a/.hidden_{A}_000000_000010.mp4": 7,
        },
    )
    assert main(["k400", str(root), "--workers", "1"]) == 0
    assert first_numbers(root) == {
        f"replacement_for_corrupted/{A}_000000_000010.mp4": 2,
        f"train/b/{B}_000000_000010.mp4": 4,
        f"train/a/{C}_0_10.mp4": 5,
    }
    report = json.loads((root / "lists" / "report.json").read_text())
    assert report["found_twice"]["count"] == 2
    assert report["not_annotated"]["examples"] == [f"more/{D}_000000_000010.mp4"]
    assert report["in_folder_of_another_class"]["examples"] == [f"train/a/{C}_0_10.mp4"]


@pytest.mark.slow
def test_links_are_followed_once(tmp_path):
    store = kinetics(tmp_path / "store", [], {f"a/{A}_000000_000010.mp4": 1})
    root = kinetics(tmp_path / "k", [("a", A)], {})
    (root / "train").symlink_to(store)
    (store / "a" / "back").symlink_to(store)  # a loop
    assert main(["k400", str(root), "--workers", "1"]) == 0
    assert first_numbers(root) == {f"train/a/{A}_000000_000010.mp4": 1}


@pytest.mark.slow
def test_lists_of_the_field_serve_as_annotations(tmp_path):
    root = kinetics(tmp_path / "k", [], {f"train/a/{A}_000000_000010.mp4": 1})
    (root / "kinetics400_train_list.txt").write_text(f"/data/elsewhere/{A}_000000_000010.mp4 1\n")
    (root / "classes").write_text("zero\none\n")
    command = ["k400", str(root), "--train", str(root / "kinetics400_train_list.txt"), "--workers", "1"]
    assert main([*command, "--labels", str(root / "classes")]) == 0
    assert (root / "lists" / "train.txt").read_text() == f"train/a/{A}_000000_000010.mp4 1\n"
    assert (root / "lists" / "classes.txt").read_text() == "zero\none\n"
