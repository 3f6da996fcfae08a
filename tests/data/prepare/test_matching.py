"""Which file is taken for an annotated video."""

from __future__ import annotations

import json

import numpy as np
from prepared import A, B, C, D, first_numbers, kinetics

from dtf.data.prepare import main
from dtf.data.prepare.journal import open_journal
from dtf.data.prepare.videos import Videos
from dtf.data.sets.data_set import DATA_SETS


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


def test_links_are_followed_once(tmp_path):
    store = kinetics(tmp_path / "store", [], {f"a/{A}_000000_000010.mp4": 1})
    root = kinetics(tmp_path / "k", [("a", A)], {})
    (root / "train").symlink_to(store)
    (store / "a" / "back").symlink_to(store)  # a loop
    assert main(["k400", str(root), "--workers", "1"]) == 0
    assert first_numbers(root) == {f"train/a/{A}_000000_000010.mp4": 1}


def test_lists_of_the_field_serve_as_annotations(tmp_path):
    root = kinetics(tmp_path / "k", [], {f"train/a/{A}_000000_000010.mp4": 1})
    (root / "kinetics400_train_list.txt").write_text(f"/data/elsewhere/{A}_000000_000010.mp4 1\n")
    (root / "classes").write_text("zero\none\n")
    command = ["k400", str(root), "--train", str(root / "kinetics400_train_list.txt"), "--workers", "1"]
    assert main([*command, "--labels", str(root / "classes")]) == 0
    assert (root / "lists" / "train.txt").read_text() == f"train/a/{A}_000000_000010.mp4 1\n"
    assert (root / "lists" / "classes.txt").read_text() == "zero\none\n"


def test_matching_240000_videos_takes_little_memory(tmp_path, monkeypatch):
    """Records, matching and journal of a data set of full size; its folders are made up, no video is read."""
    import tracemalloc

    from dtf.data.annotations import AnnotatedSet, Annotations

    count = 240_000
    ids = np.array([f"{i:011d}_000000_000010" for i in range(count)], dtype=np.bytes_)
    labels = (np.arange(count) % 400).astype(np.int32)
    classes = [f"class {i}" for i in range(400)]
    tracemalloc.start()
    try:
        videos = Videos(DATA_SETS["k400"], AnnotatedSet(classes, {"train": Annotations(ids, labels)}))
        videos._folders.extend(f"train/class_{i}" for i in range(400))
        for i in range(0, count, 40):  # slow with tracing on: a sample
            number = videos.find(ids[i].decode())
            assert number == i
            videos._add(number, i % 400, f"{ids[i].decode()}.mp4")
        settings = {"dataset": "k400", "resize": None}
        with open_journal(tmp_path / "lists" / "journal.jsonl", settings) as journal:
            record = {"size": 1, "time": 2, "full": False, "frames": 300, "fps": 29.97, "width": 340}
            record |= {"height": 256, "rotation": 0, "damaged": 0}
            for i in range(0, count, 40):
                head = {"name": ids[i].decode(), "path": videos.path(i)}
                videos.take(i, record, journal.append(head | record))
        assert tracemalloc.get_traced_memory()[1] < 120 * count
    finally:
        tracemalloc.stop()
    again = Videos(DATA_SETS["k400"], AnnotatedSet(classes, {"train": Annotations(ids, labels)}))
    again._folders, again._folder_of = videos._folders, videos._folder_of
    again._ending_of, again._odd_names = videos._ending_of, videos._odd_names
    with open_journal(tmp_path / "lists" / "journal.jsonl", settings) as journal:
        journal.load(again, retry_failed=False)
    assert (again.state == videos.state).all()
    assert again.state.sum() == count // 40
    assert (again.line_at == videos.line_at).all()
