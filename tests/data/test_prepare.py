"""`python -m dtf.data.prepare` on small copies of the three data sets, with faults of every kind."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import official_layout
import pool_functions
import pytest
import torch
from engine import TINY_MODEL
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from video_files import numbers_of, write_video

import dtf.data.jobs
from dtf.data import prepare as prepare_module
from dtf.data.decode import VideoReader
from dtf.data.jobs import Encoding, Probe, Resize, probe, resize
from dtf.data.prepare import DATA_SETS, Videos, main

CONF = Path(__file__).parents[2] / "conf"
SPLITS = {"k400": ("train", "val"), "ssv2": ("train", "val"), "diving48": ("train", "test")}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory, real_videos):
    """A function from the name of a data set to its layout, made once and prepared once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = official_layout.LAYOUTS[name](tmp_path_factory.mktemp("sets") / name, real_videos)
            assert main([name, str(made[name].root), "--workers", "2"]) == 0
        return made[name]

    return make


def read_lists(root, splits):
    return {split: (root / "lists" / f"{split}.txt").read_text().splitlines() for split in splits}


def names_of(lines):
    return [Path(line.rpartition(" ")[0]).stem for line in lines]


def excluded(root):
    with open(root / "lists" / "excluded.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def data_module(name, root, *overrides):
    settings = [f"data.root='{root}'", "data.num_workers=0", "data.batch_size=2"]
    settings += [f"data.{override}" for override in overrides]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(overrides=[f"+data={name}", *settings])
    return instantiate(cfg.data)


# ---- end to end --------------------------------------------------------------------------------------------


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
        assert batch["error"] == [""] * 2
        assert batch["video"].shape == (2, 3, 16, 32, 32)
        seen.update(batch["video_index"].tolist())
    assert len(seen) >= len(layout.listed["train"]) - 1  # the odd one is left out
    clips, crops = map(int, data.test_views.split("x"))
    views = {}
    for batch in data.test_dataloader():
        assert set(batch["error"]) == {""}
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
    assert {d.frame_samplers[s].scheme for d in (k400,) for s in ("train", "val", "test")} == {"dense"}
    assert {ssv2.frame_samplers[s].scheme for s in ("train", "val", "test")} == {"segment"}
    assert {diving48.frame_samplers[s].scheme for s in ("train", "val", "test")} == {"uniform"}
    assert (k400.test_views, ssv2.test_views, diving48.test_views) == ("10x3", "2x3", "1x3")
    assert {d.short_side_px for d in (k400, ssv2, diving48)} == {256}
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


# ---- matching ----------------------------------------------------------------------------------------------


def kinetics(root, rows, files):
    """A Kinetics tree: rows of (label, YouTube id), each 10 s from 0; files by path with their number."""
    (root / "annotations").mkdir(parents=True)
    text = "label,youtube_id,time_start,time_end,split,is_cc\n"
    text += "".join(f"{label},{video},0,10,train,0\n" for label, video in rows)
    (root / "annotations" / "train.csv").write_text(text)
    for path, number in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / path, [number] * 5)
    return root


def first_numbers(root):
    """The number painted into each listed video."""
    lines = (root / "lists" / "train.txt").read_text().splitlines()
    numbers = {}
    for line in lines:
        path = line.rpartition(" ")[0]
        with VideoReader(root / path) as reader:
            numbers[path] = numbers_of(reader.read([0]).permute(0, 2, 3, 1).numpy())[0]
    return numbers


A, B, C, D = ("AAAAAAAAAAA", "-BBBBBBBBBB", "CCCCCCCCCCC", "DDDDDDDDDDD")


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
        with prepare_module.open_journal(tmp_path / "lists" / "journal.jsonl", settings) as journal:
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
    with prepare_module.open_journal(tmp_path / "lists" / "journal.jsonl", settings) as journal:
        journal.load(again, retry_failed=False)
    assert (again.state == videos.state).all()
    assert again.state.sum() == count // 40
    assert (again.line_at == videos.line_at).all()


# ---- faults of the command line ----------------------------------------------------------------------------


def test_errors_are_short_and_say_what_to_do(tmp_path, capsys):
    def fails(*arguments):
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error[error.index("error: ") :]

    root = kinetics(tmp_path / "k", [("a", A)], {})
    assert "is not a folder" in fails("k400", tmp_path / "missing")
    assert "holds none of the 1 annotated videos" in fails("k400", root)
    assert "no annotation file of any split found" in fails("ssv2", root)
    assert "no annotation file of val found" in fails("k400", root, "--splits", "train,val")
    assert "has train, test, not val" in fails("diving48", root, "--splits", "val")
    assert "--workers must be at least 1" in fails("k400", root, "--workers", 0)
    assert "--out is the folder of a smaller copy" in fails("k400", root, "--out", tmp_path)
    several = fails("k400", root, "--resize", 8, "--crf", 99, "--keyframe-distance", 0)
    assert "3 problems" in several
    (root / "train.csv").write_text("x")
    assert "several annotation files for train" in fails("k400", root)
    (root / "train.csv").unlink()
    (root / "annotations" / "train.csv").write_text("label,youtube_id,time_start,time_end\na,x,1,2\n")
    assert "train.csv line 2: a YouTube id has 11" in fails("k400", root)
    with pytest.raises(SystemExit) as caught:
        main(["k700", str(root)])
    assert caught.value.code == 2


def test_a_run_without_any_usable_video_fails_but_reports(tmp_path, capsys):
    root = kinetics(tmp_path / "k", [("a", A)], {})
    (root / f"{A}_000000_000010.mp4").write_bytes(b"")
    assert main(["k400", str(root), "--workers", "1"]) == 1
    assert "error: none of the 1 videos can be used" in capsys.readouterr().err
    assert excluded(root) == {f"{A}_000000_000010": "is empty (0 bytes)"}
    assert not (root / "lists" / "train.txt").exists()


def test_bad_rows_can_be_skipped_and_are_reported(tmp_path):
    root = kinetics(tmp_path / "k", [("a", A), ("a", "short"), ("a", A)], {f"{A}_000000_000010.mp4": 1})
    assert main(["k400", str(root), "--workers", "1"]) == 1
    assert main(["k400", str(root), "--workers", "1", "--skip-bad-rows"]) == 0
    report = json.loads((root / "lists" / "report.json").read_text())
    assert report["skipped_rows"]["count"] == 2
    assert "train.csv line 3" in report["skipped_rows"]["examples"][0]


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ssv2", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("ROOT", "--annotations", "--answers", "--resize", "--keyframe-distance", "--check"):
        assert option in text
    assert "78687.webm" in text


# ---- stopping and going on ---------------------------------------------------------------------------------


def test_a_second_run_looks_at_nothing_again(layouts, tmp_path, monkeypatch):
    root = tmp_path / "k"
    shutil.copytree(layouts("diving48").root, root, symlinks=True)
    before = read_lists(root, ("train", "test"))

    jobs = []
    real = prepare_module.run_isolated

    def counting(function, todo, **kwargs):
        todo = list(todo)
        jobs.extend(todo)
        return real(function, iter(todo), **kwargs)

    monkeypatch.setattr(prepare_module, "run_isolated", counting)
    assert main(["diving48", str(root), "--workers", "1"]) == 0
    assert jobs == []
    assert read_lists(root, ("train", "test")) == before
    # A file that was replaced, and a torn last line: only these are looked at again.
    fixed = next(
        path for path in sorted((root / "rgb").glob("*.mp4")) if path.exists() and not path.stat().st_size
    )
    write_video(fixed, 5)
    journal = root / "lists" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    torn = json.loads((layouts("diving48").root / "lists" / "journal.jsonl").read_text().splitlines()[-1])
    assert main(["diving48", str(root), "--workers", "1"]) == 0
    assert {os.path.basename(job.path) for job in jobs} == {fixed.name, os.path.basename(torn["path"])}
    assert fixed.stem in names_of((root / "lists" / "train.txt").read_text().splitlines())
    # What failed may be tried again.
    jobs.clear()
    assert main(["diving48", str(root), "--workers", "1", "--retry-failed"]) == 0
    assert (
        len(jobs)
        == sum("missing" not in r and "link" not in r for r in layouts("diving48").excluded.values()) - 1
    )


@pytest.mark.parametrize("resizing", [False, True])
def test_a_killed_run_goes_on_where_it_was(tmp_path, resizing):
    files = {f"{i:011d}_000000_000010.mp4": i for i in range(60)}
    root = kinetics(tmp_path / "k", [("a", name[:11]) for name in files], files)
    out = tmp_path / "copy" if resizing else root
    command = ["k400", str(root), "--workers", "2"]
    command += ["--resize", "24", "--out", str(out)] if resizing else []
    journal = out / "lists" / "journal.jsonl"
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    seen = 0
    for kill_at in (5, 25):
        process = context.Process(target=pool_functions.prepare, args=(command,))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") > kill_at:
                process.kill()
            time.sleep(0.001)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        lines = journal.read_bytes().count(b"\n")
        assert seen < lines < 60
        seen = lines
        assert not (out / "lists" / "train.txt").exists()
    assert main(command) == 0
    lines = (out / "lists" / "train.txt").read_text().splitlines()
    assert names_of(lines) == [Path(name).stem for name in files]
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert len(records) == len({record["name"] for record in records}) == 60  # nothing was done twice
    if resizing:
        assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
        for path in sorted(out.glob("*.mp4"))[::20]:
            with VideoReader(path) as reader:
                assert tuple(reader.read([0]).shape) == (1, 3, 24, 32)


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path, capsys):
    pytest.importorskip("fcntl")
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    settings = {"dataset": "k400", "resize": None}
    with prepare_module.open_journal(root / "lists" / "journal.jsonl", settings):
        assert main(["k400", str(root)]) == 1
    assert "another run is working on this folder" in capsys.readouterr().err


def test_a_copy_with_other_settings_is_refused(tmp_path, capsys):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    assert main(["k400", str(root), "--resize", "32", "--workers", "1"]) == 0
    assert (tmp_path / "k_32" / "lists" / "train.txt").read_text() == f"{A}_000000_000010.mp4 0\n"
    capsys.readouterr()
    assert main(["k400", str(root), "--resize", "32", "--crf", "30", "--workers", "1"]) == 1
    assert "belongs to a run with resize" in capsys.readouterr().err


def test_decoders_that_hang_or_crash_cost_one_video(tmp_path, monkeypatch):
    ids = (A, "HANGAAAAAAA", "CRASHAAAAAA", D)
    files = {f"{video}_000000_000010.mp4": i for i, video in enumerate(ids)}
    root = kinetics(tmp_path / "k", [("a", name[:11]) for name in files], files)
    monkeypatch.setattr(prepare_module, "probe", pool_functions.probe_with_bad_decoder)
    assert main(["k400", str(root), "--workers", "2", "--time-limit", "3"]) == 0
    assert names_of(read_lists(root, ["train"])["train"]) == [f"{A}_000000_000010", f"{D}_000000_000010"]
    assert excluded(root) == {
        "HANGAAAAAAA_000000_000010": "took longer than 3 s and was cut off",
        "CRASHAAAAAA_000000_000010": "crashed its process (SIGSEGV)",
    }


def test_a_full_disk_stops_the_run_with_one_line(tmp_path, capsys, monkeypatch):
    root = kinetics(tmp_path / "k", [("a", A)], {f"{A}_000000_000010.mp4": 1})
    out = tmp_path / "copy"
    (out / "train").mkdir(parents=True)
    full = OSError(28, "No space left on device")

    def replace(*_paths):
        raise full

    monkeypatch.setattr(dtf.data.jobs.os, "replace", replace)
    with pytest.raises(dtf.data.jobs.Stop, match="No space left on device"):
        resize(Resize(str(root / f"{A}_000000_000010.mp4"), str(out / "x"), Encoding(24)))
    assert list(out.glob("*.mp4")) == []


# ---- one video ---------------------------------------------------------------------------------------------


def test_probe_says_what_a_video_is(tmp_path, video_case):
    turned = write_video(tmp_path / "turned.mp4", 9, rotation=90, fps=25)
    expected = {"frames": 9, "fps": 25.0, "width": 48, "height": 64, "rotation": 90, "damaged": 0}
    assert probe(Probe(str(turned))) == probe(Probe(str(turned), full=True)) == expected
    whole = video_case("h264_b_frames.mp4").read_bytes()
    spoiled = bytearray(whole)
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    spoiled[middle : middle + 60] = b"\xa5" * 60
    (tmp_path / "spoiled.mp4").write_bytes(spoiled)
    assert probe(Probe(str(tmp_path / "spoiled.mp4"), full=True))["frames"] == 40
    assert "error" in probe(Probe(str(tmp_path / "nowhere.mp4")))


@pytest.mark.parametrize(
    "name",
    [
        "h264_b_frames.mp4",
        "variable_rate.mp4",
        "vp9.webm",
        "h264.avi",
        "late_start.mkv",
        "h264_yuv444_odd_size.mp4",
    ],
)
def test_a_copy_has_the_same_frames_at_the_same_times(tmp_path, video_case, name):
    source = video_case(name)
    record = resize(Resize(str(source), str(tmp_path / "copy"), Encoding(24, keyframe_distance=7)))
    assert record["ending"] == ".mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mp4"]
    with VideoReader(source) as before, VideoReader(tmp_path / "copy.mp4") as after:
        assert (record["frames"], record["height"]) == (before.num_frames, 24)
        assert record["width"] % 2 == record["height"] % 2 == 0
        everything = range(before.num_frames)
        assert numbers_of(after.read(everything).permute(0, 2, 3, 1).numpy()) == numbers_of(
            before.read(everything).permute(0, 2, 3, 1).numpy()
        )
        assert np.abs(before.frame_seconds - after.frame_seconds).max() < 1e-4
        assert abs(before.fps - after.fps) < 0.01


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_copy_is_upright(tmp_path, rotation):
    source = write_video(tmp_path / "in.mp4", [1, 2, 4], size=(96, 64), rotation=rotation)
    record = resize(Resize(str(source), str(tmp_path / "out"), Encoding(32)))
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        first, second = (reader.read([2]).float() for reader in (before, after))
    assert record["rotation"] == 0
    small = torch.nn.functional.interpolate(first, tuple(second.shape[2:]), mode="bilinear", antialias=True)
    assert (small - second).abs().mean() < 12


def test_a_copy_keeps_colours_and_skips_small_videos(tmp_path, real_videos):
    source = next(path for path in real_videos if path.name == "carphone_pristine.mp4")  # 176 x 144
    record = resize(Resize(str(source), str(tmp_path / "small"), Encoding(72, crf=12)))
    with VideoReader(source) as before, VideoReader(tmp_path / "small.mp4") as after:
        wanted = [0, 60, 119]
        first, second = before.read(wanted).float(), after.read(wanted).float()
    assert record["width"] == 88
    # By way of RGB, the mean of green would be off by more than 1.
    assert (first.mean((0, 2, 3)) - second.mean((0, 2, 3))).abs().max() < 0.7
    record = resize(Resize(str(source), str(tmp_path / "same"), Encoding(256)))
    assert (tmp_path / "same.mp4").read_bytes() == source.read_bytes()
    assert record["ending"] == ".mp4"
    webm = write_video(tmp_path / "tiny.webm", 6, codec="libvpx-vp9")
    assert resize(Resize(str(webm), str(tmp_path / "tiny_copy"), Encoding(256)))["ending"] == ".webm"


def test_a_broken_video_leaves_nothing_behind(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    record = resize(Resize(str(tmp_path / "broken.mp4"), str(tmp_path / "out" / "copy"), Encoding(24)))
    assert "cannot be opened" in record["error"]
    assert list((tmp_path / "out").iterdir()) == []
