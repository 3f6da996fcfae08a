"""`python -m dtf.data.prepare` on small copies of the data sets, with faults of every kind, to the end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import official_layout
import pytest
import torch
from engine import TINY_MODEL
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from prepared import SPLITS, excluded, names_of, read_lists
from video_files import write_video

from dtf.data.prepare import main
from dtf.data.sets.data_set import DATA_SETS

pytestmark = pytest.mark.slow  # reads trees of videos in processes

CONF = Path(__file__).parents[3] / "conf"


def data_module(name, root, *overrides):
    settings = [f"data.root='{root}'", "data.num_workers=0", "data.batch_size=2"]
    settings += [f"data.{override}" for override in overrides]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(overrides=[f"+data={name}", *settings])
    return instantiate(cfg.data)


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_lists_and_report_name_exactly_what_is_there(layouts, name):
    layout = layouts(name)
    lists = read_lists(layout.root, SPLITS[name])
    assert {split: names_of(lines) for split, lines in lists.items()} == layout.listed
    reasons = excluded(layout.root)
    assert set(reasons) == set(layout.excluded)
    for video, reason in layout.excluded.items():
        assert reason in reasons[video], video
    report = json.loads((layout.root / "lists" / "report.json").read_text())
    for split, row in report["splits"].items():
        assert row["official"] == DATA_SETS[name].official[split]
        assert row["usable"] == row["listed"] == len(layout.listed[split])
        assert row["excluded"] == row["annotated"] - row["usable"] == sum(row["reasons"].values())
        assert row["found"] == row["annotated"] - row["reasons"]["missing"]
    assert sorted(report["splits"]) == sorted(SPLITS[name])  # the test splits without labels are left out
    classes = (layout.root / "lists" / "classes.txt").read_text().splitlines()
    if name == "k400":
        assert classes == official_layout.K400_CLASSES
    assert len(classes) == report["classes"]
    assert (report["not_annotated"]["count"], report["found_twice"]["count"]) == (0, 0)


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_prepared_lists_become_batches(layouts, name):
    layout = layouts(name)
    data = data_module(name, layout.root, "crop_px=32", "short_side_px=40", "augment.short_side_px=[32,40]")
    data.setup()
    test_split = SPLITS[name][1]
    for stage, split in (("train", "train"), ("val", test_split), ("test", test_split)):
        index = data.index(stage)
        assert [Path(index.relative_path(i)).stem for i in range(len(index))] == layout.listed[split]
    seen = set()
    for batch in data.train_dataloader():
        assert batch["error"] == [[]] * 2
        assert batch["video"].shape == (2, 3, 16, 32, 32)
        seen.update(batch["video_index"].tolist())
    assert len(seen) >= len(layout.listed["train"]) - 1  # the odd one is left out
    clips, crops = map(int, data.test_views.split("x"))
    views = {}
    for batch in data.test_dataloader():
        assert not any(batch["error"])
        for video, view in zip(batch["video_index"].tolist(), batch["view_index"].tolist(), strict=True):
            views.setdefault(video, []).append(view)
    assert views == {i: list(range(clips * crops)) for i in range(len(layout.listed[test_split]))}
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["video"].dtype == torch.float32
    assert torch.isfinite(batch["video"]).all()


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_training_and_evaluation_run_on_prepared_lists(command, layouts, tmp_path, name):
    layout = layouts(name)
    clips = ["crop_px=32", "short_side_px=32", "clip_length=4", "augment.short_side_px=[32,40]"]
    data = [f"data={name}", f"data.root={layout.root}", "data.num_workers=0", "data.batch_size=4"]
    trained = command(
        "train.py",
        *data,
        *(f"data.{setting}" for setting in clips),
        *("model=dtf_tiny", *TINY_MODEL, "trainer=cpu", "trainer.max_epochs=1", "logger=none"),
        f"output={tmp_path}/run",
    )
    assert trained.code == 0, trained.err
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    evaluated = command(
        "eval.py", *data, f"checkpoint={checkpoint}", "trainer=cpu", "views=2x3", f"output={tmp_path}/eval"
    )
    assert evaluated.code == 0, evaluated.err
    with open(tmp_path / "eval" / "scores.csv", newline="") as file:
        paths = [row["video"] for row in csv.DictReader(file)]
    assert [Path(path).stem for path in paths] == layout.listed[SPLITS[name][1]]
    # These sets have no other list for it: what is tested on is validation, and is called so.
    called = "validation split (on which training chooses its best checkpoint)"
    for outcome, folder in ((trained, "run"), (evaluated, "eval")):
        assert f"{called}, " in outcome.out
        assert called in (tmp_path / folder / "report.html").read_text("utf-8")


def test_the_data_module_says_what_its_lists_leave_out(layouts, tmp_path, caplog):
    root = tmp_path / "d"
    shutil.copytree(layouts("diving48").root, root, symlinks=True)
    with caplog.at_level("INFO"):
        data_module("diving48", root).index("train")
    assert "train has 4 videos of 48 classes; 7 of 11 annotated ones are left out" in caplog.text
    assert "report.json says" not in caplog.text
    with open(root / "lists" / "test.txt") as file:
        lines = file.readlines()
    (root / "lists" / "test.txt").write_text("".join(lines[1:]))
    data_module("diving48", root).index("test")
    assert "lists 3 videos, its report.json says 4" in caplog.text
    for odd in ('{"splits": {"test": {"listed": Infinity}}}', "[" * 10_000):
        (root / "lists" / "report.json").write_text(odd)
        assert len(data_module("diving48", root).index("test")) == 3


def test_configs_follow_the_protocols_of_the_field():
    k400, ssv2, diving48 = (data_module(name, "somewhere") for name in ("k400", "ssv2", "diving48"))
    assert {d.view.sampler(s).scheme for d in (k400,) for s in ("train", "val", "test")} == {"dense"}
    assert {ssv2.view.sampler(s).scheme for s in ("train", "val", "test")} == {"segment"}
    assert {diving48.view.sampler(s).scheme for s in ("train", "val", "test")} == {"uniform"}
    assert (k400.test_views, ssv2.test_views, diving48.test_views) == ("10x3", "2x3", "1x3")
    assert {d.view.short_side_px for d in (k400, ssv2, diving48)} == {256}
    assert ssv2.train_transform.flip == 0.0
    flipping = data_module("ssv2", "somewhere", "augment.flip=1.0").train_transform
    clip = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    mirrored = [flipping.recolor(clip, label, np.random.default_rng(0))[1] for label in (86, 94, 166, 0)]
    assert mirrored == [87, 93, 167, 0]


def test_paths_with_blanks_quotes_and_other_letters_go_through_the_lists(tmp_path):
    root = tmp_path / "set (ä)"
    name = "-a b"[0] * 11 + "_000001_000011"
    folder = root / "train, \"x\" 'y' 100% 7" / "air  drumming"
    folder.mkdir(parents=True)
    write_video(folder / f"{name}.mp4", 5)
    (root / "train.csv").write_text(
        f"label,youtube_id,time_start,time_end,split,is_cc\nair drumming,{name[:11]},1,11,train,0\n"
    )
    assert main(["k400", str(root), "--workers", "1"]) == 0
    index = data_module("k400", root, "splits.val=null", "splits.test=null").index("train")
    assert index.path(0) == str(folder / f"{name}.mp4")
