"""What is taken of the description in a file of weights: by name, by type, into settings that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dtf.runs.conf import CONF
from dtf.runs.description import taken_data, taken_names, taken_task
from dtf.runs.from_checkpoint import apply_data

FILE = Path("x.ckpt")
VIEW = {
    "clip_length": 8,
    "frame_stride": 2,
    "crop_px": 64,
    "short_side_px": None,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": (0.2, 0.2, 0.2),
    "test_views": "10x3",
    "sampling": {"train": {"scheme": "dense", "short": "loop", "target_fps": None, "endpoint": True}},
}


def eval_data(*overrides: str) -> DictConfig:
    """The data settings of eval.py, `???` and all."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("eval", overrides=["checkpoint=x", *overrides]).data


def test_what_is_taken() -> None:
    where = {"name": "folder", "root": "/a", "splits": {"train": "t", "val": None, "test": "lists/x.txt"}}
    others = {
        "_target_": "os.system",
        "batch_size": 10**9,
        "augment": {"_target_": "os.system"},
        "num_workers": 999,
        "decoder": "x",
        "new": 1,
        "max_read_seconds": None,
        "class_names": None,
    }
    assert taken_data(FILE, VIEW | where | others, ["a"]) == VIEW | where
    # Never the file of names that the run had read.
    assert taken_data(FILE, {"class_names": "/etc/passwd"}, ["a"])["class_names"] == ["a"]
    # Weights from before there was a choice were trained with the only one.
    before = {key: value for key, value in VIEW.items() if key != "interpolation"}
    assert taken_data(FILE, before, ["a"]) == before | {"interpolation": None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, x)
            for key in ("clip_length", "frame_stride", "crop_px")
            for x in (None, 0, 10**6, 1.5, "8", True)
        ),
        *(("interpolation", x) for x in ("random", "nearest", 3, ["bicubic"])),
        *(("short_side_px", x) for x in ("${.crop_px}", -1, [1])),
        *(("mean", x) for x in (0.5, "abc", [1, 2], [1, 2, "3"], [1, 2, float("nan")], [1, 2, float("inf")])),
        *(("sampling", x) for x in ("dense", {"train": "dense"}, {"other": {}}, {"test": {"_target_": "x"}})),
        *(("sampling", {"test": {"scheme": x}}) for x in ("${oc.env:HOME}", {"_target_": "os.system"}, [1])),
        *(("splits", x) for x in ("train", {"x": "y"}, {"test": "/etc"}, {"test": "../x"}, {"test": "~/x"})),
        *(("splits", {"test": x}) for x in (1, ["a"], "${oc.env:HOME}", "a/../../b")),
        *(("test_views", x) for x in (3, "9999x3", "1x2", "10x3 ", None)),
        *(("root", x) for x in (1, "${oc.env:HOME}", None)),
        *(("clips_per_class", x) for x in (3, {"x": 1}, {"train": -1}, {"train": "9"})),
        *(("generation_seed", x) for x in (None, 1.0, -1)),
        ("name", ["folder"]),
    ],
)
def test_mistyped_settings_are_one_line(key: str, value: object) -> None:
    with pytest.raises(
        ValueError, match=rf"^x\.ckpt: damaged description: data\.{key} cannot be .*$"
    ) as error:
        taken_data(FILE, VIEW | {key: value}, ["a"])
    assert len(str(error.value)) < 200


def test_clips_of_gigabytes() -> None:
    """Each number may stand alone; a network without temporal layers takes clips of any length and size."""
    for settings in ({"clip_length": 8000, "crop_px": 224}, {"crop_px": 8000}, {"short_side_px": 8000}):
        with pytest.raises(
            ValueError, match=r"^x\.ckpt: damaged description: clips of .* more than 256 MiB$"
        ):
            taken_data(FILE, VIEW | settings, ["a"])
    taken_data(FILE, VIEW | {"clip_length": 64, "crop_px": 1024}, ["a"])


def test_mistyped_names_and_data() -> None:
    for names in ("ab", ["a", 1], {"a": 1}, None):
        with pytest.raises(ValueError, match="class_names must be a list of texts"):
            taken_names(FILE, names, 2)
    with pytest.raises(ValueError, match="names 1 classes, its network has 2"):
        taken_names(FILE, ["a"], 2)
    with pytest.raises(ValueError, match=r"data must be settings, got \[1\]"):
        taken_data(FILE, [1], [])


# ---- into the settings of eval.py ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_the_stored_root_is_taken_for_every_data_set(name: str, tmp_path: Path) -> None:
    """`eval.py checkpoint=... views=3x3`, as train.py prints it."""
    cfg = eval_data(f"data={name}")
    changed = apply_data(cfg, VIEW | {"name": name, "root": str(tmp_path)}, ["checkpoint=x", "views=3x3"])
    assert cfg.root == str(tmp_path)
    assert f"data.root={tmp_path}" in changed
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)["crop_px"] == 64

    cfg = eval_data(f"data={name}", "data.root=/typed")
    apply_data(cfg, VIEW | {"name": name, "root": str(tmp_path)}, ["data.root=/typed"])
    assert cfg.root == "/typed"

    cfg, before = eval_data(f"data={name}"), eval_data(f"data={name}")
    apply_data(cfg, VIEW | {"name": name, "root": str(tmp_path / "gone")}, [])
    assert OmegaConf.is_missing(cfg, "root") == OmegaConf.is_missing(before, "root")


def test_stored_settings_apply_unless_given() -> None:
    stored = {"name": "folder", "crop_px": 112, "sampling": {"test": {"scheme": "segment"}}}
    cfg = eval_data("data=folder")
    assert apply_data(cfg, stored, ["checkpoint=x", "data=folder"]) == [
        *("data.crop_px=112", "data.sampling.test.scheme=segment")
    ]
    assert cfg.crop_px == cfg.short_side_px == 112
    assert cfg.sampling.test.scheme == "segment"

    for given in ("data.sampling.test.scheme=uniform", "data.sampling={test:{scheme:uniform}}"):
        # Hydra has put them there already; here they are left alone.
        cfg = eval_data("data=folder", "data.crop_px=96", given)
        assert apply_data(cfg, stored, ["data.crop_px=96", given]) == []
        assert cfg.crop_px == 96
        assert cfg.sampling.test.scheme == "uniform"


def test_for_another_data_set_only_the_clip_settings_count(tmp_path: Path) -> None:
    stored = VIEW | {"name": "folder", "root": str(tmp_path), "splits": {"test": "x"}, "class_names": ["a"]}
    cfg = eval_data("data=k400")
    apply_data(cfg, stored, [])
    assert cfg.crop_px == 64
    assert cfg.class_names == "lists/classes.txt"
    assert cfg.splits.test == "lists/val.txt"
    assert OmegaConf.is_missing(cfg, "root")


def test_for_the_same_data_set_splits_and_names(tmp_path: Path) -> None:
    stored = {"name": "folder", "splits": {"test": "lists/x.txt"}, "class_names": ["a", "b"]}
    cfg = eval_data("data=folder")
    apply_data(cfg, stored, [])
    assert cfg.splits.test == "lists/x.txt"
    assert list(cfg.class_names) == ["a", "b"]
    # Where the data set has names of its own, they are compared with the checkpoint's.
    cfg = eval_data("data=ssv2")
    apply_data(cfg, stored | {"name": "ssv2"}, [])
    assert cfg.class_names == "lists/classes.txt"


def test_a_checkpoint_makes_no_data(tmp_path: Path) -> None:
    """Only for a folder that exists, which its settings are then compared with."""
    stored = {"name": "motion", "root": str(tmp_path), "clips_per_class": {"train": 10**6}, "unknown": 1}
    cfg = eval_data()
    apply_data(cfg, stored, [])
    assert cfg.clips_per_class == {"train": 10**6}
    typed = f"data.root={tmp_path}/typed"  # what the default names may be there
    for root, given in ((tmp_path / "gone", []), (tmp_path, [typed])):
        cfg = eval_data(typed)
        apply_data(cfg, stored | {"root": str(root)}, given)
        assert cfg.clips_per_class == eval_data().clips_per_class
        assert "unknown" not in cfg


@pytest.mark.parametrize("task", ["a/../b", "", "x y", "${oc.env:HOME}", ["classification"], 1, "a" * 101])
def test_a_task_is_taken_by_name(task) -> None:
    with pytest.raises(ValueError, match="damaged description: task cannot be"):
        taken_task(FILE, task)
    assert taken_task(FILE, "two_heads") == "two_heads"
    assert taken_task(FILE, None) is None
