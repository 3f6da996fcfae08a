"""The data module: from a tree or lists to normalised batches, its configuration, its messages, resuming."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import make_tree
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from video_files import numbers_of, write_video

import dtf
from dtf.data.clip_view import STAGES
from dtf.data.datamodule import VideoDataModule
from dtf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize

CONF = str(Path(dtf.__file__).parents[1] / "conf")


def small(root: Path, **settings) -> VideoDataModule:
    defaults = {"clip_length": 2, "frame_stride": 1, "crop_px": 32, "batch_size": 2, "num_workers": 0}
    return VideoDataModule(root, **(defaults | settings))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train: 3 + 2, val: 1 + 1, test: 1 + 2 videos of the classes "a" and "b c"."""
    splits = {"train": {"a": 3, "b c": 2}, "val": {"a": 1, "b c": 1}, "test": {"a": 1, "b c": 2}}
    return make_tree(tmp_path_factory.mktemp("data") / "tree", splits)


def numbers(batch) -> list[int]:
    """The running number painted into each clip of a uint8 batch."""
    return [numbers_of(clip.permute(1, 2, 3, 0).numpy())[0] for clip in batch["video"]]


def test_from_folder_to_batches(tree):
    data = small(tree, augment={"crop": "center", "flip": 0.0}, batch_size=2)
    assert data.class_names == ["a", "b c"]
    assert data.num_classes == 2
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch["label"]) for batch in batches] == [2, 2]  # the fifth video waits for its turn
    seen = [index for batch in batches for index in batch["video_index"].tolist()]
    assert len(set(seen)) == 4
    for batch in batches:
        assert batch["video"].shape == (2, 3, 2, 32, 32)
        assert batch["video"].dtype == torch.uint8
        assert numbers(batch) == batch["video_index"].tolist()
        assert batch["label"].tolist() == [int(i >= 3) for i in batch["video_index"].tolist()]
        assert batch["error"] == [[], []]
    (batch,) = data.val_dataloader()
    assert numbers(batch) == [5, 6]
    assert data.video_path("val", 1) == str(tree / "val" / "b c" / "0.mp4")


def test_repeats(tree):
    """Epochs grow by them, batches do not; evaluation has none."""
    data = small(tree, batch_size=4, repeats=2)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 2  # 10 clips, the short last batch left out
    for batch in batches:
        indices = batch["video_index"].tolist()
        assert indices[::2] == indices[1::2]
        assert indices[0] != indices[2]
    assert [batch["video_index"].tolist() for batch in data.val_dataloader()] == [[0, 1]]
    for settings in ({"repeats": 0}, {"repeats": 3, "batch_size": 4}):
        with pytest.raises(ValueError, match="repeats must be at least 1 and divide batch_size"):
            small(tree, **settings)


def test_multi_view_batches(tree):
    data = small(tree, test_views="2x3", batch_size=6)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert len(batches) == 3
    for index, batch in enumerate(batches):
        assert batch["video"].shape == (6, 3, 2, 32, 32)
        assert batch["video_index"].tolist() == [index] * 6
        assert batch["view_index"].tolist() == list(range(6))
    assert len(small(tree, test_views="2x3", batch_size=12).test_dataloader()) == 2


def test_normalised_after_the_transfer(tree):
    data = small(tree)
    (batch,) = data.val_dataloader()
    raw = batch["video"].clone()
    out = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(out["video"], normalize(raw, IMAGENET_MEAN, IMAGENET_STD))
    again = out["video"].clone()
    assert torch.equal(data.on_after_batch_transfer(out, 0)["video"], again)


@pytest.mark.slow
def test_real_videos_as_a_folder(real_videos, tmp_path):
    """Films that no one here made, as data=folder, with workers, all schemes and views."""
    for split in ("train", "val", "test"):
        for video in real_videos:
            folder = tmp_path / split / ("phone" if "carphone" in video.name else "film")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, folder)
    with initialize_config_dir(CONF, version_base=None):
        config = compose(
            overrides=[
                "+data=folder",
                f"data.root={tmp_path}",
                "data.test_views=2x3",
                "data.crop_px=96",
                "data.batch_size=2",
                "data.num_workers=2",
                "data.clip_length=8",
                "data.sampling.val.scheme=segment",
                "data.sampling.test.scheme=uniform",
                "data.augment.brightness=0.2",
            ]
        )
    data = instantiate(config.data)
    assert data.class_names == ["film", "phone"]
    data.setup()
    counts = {}
    for name, loader in [
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ]:
        clips = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        counts[name] = sum(len(batch["label"]) for batch in clips)
        for batch in clips:
            assert batch["video"].shape[1:] == (3, 8, 96, 96)
            assert not any(batch["error"])
            assert batch["video"].std() > 0.3  # pictures, not blanks
    assert counts == {"train": 4, "val": 4, "test": 24}


# ---- lists ----


def test_list_files(tree, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tree, root)
    (root / "train.csv").write_text("train/a/0.mp4,0\ntrain/b c/1.mp4,2\n")
    (root / "names.txt").write_text("x\ny\nz\n")
    splits = {"train": "train.csv", "val": None}
    assert small(root, splits=splits).class_names == ["0", "1", "2"]
    data = small(root, splits=splits, class_names="names.txt")
    assert data.class_names == ["x", "y", "z"]
    assert [data.index("train").relative_path(i) for i in range(2)] == ["train/a/0.mp4", "train/b c/1.mp4"]
    assert data.index("train").labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"train\.csv line 2: label 2 is out of range 0\.\.1"):
        small(root, splits=splits, class_names=["x", "y"]).index("train")
    # Training without validation.
    data.setup("fit")
    with pytest.raises(ValueError, match=r"data\.splits\.val is null"):
        data.setup("validate")


# ---- what is wrong with a data folder ----


def test_missing_root(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: does not exist; expected ROOT/"):
        small(tmp_path / "nowhere").setup("fit")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        small(tmp_path / "file").class_names  # noqa: B018


def test_empty_root(tmp_path):
    with pytest.raises(ValueError, match="2 problems") as caught:
        small(tmp_path).setup("fit")
    assert "no 'train' for train: expected train/CLASS/*.mp4, found nothing" in str(caught.value)
    assert "no 'val' for val" in str(caught.value)


def test_lists_that_are_not_prepared(tmp_path):
    splits = {"train": "lists/train.txt", "val": "lists/val.txt", "test": "lists/val.txt"}
    with pytest.raises(ValueError, match="its lists are missing") as caught:
        small(tmp_path, name="k400", splits=splits).setup()
    command = f"python -m dtf.data.prepare k400 {tmp_path}"
    assert str(caught.value) == (
        f"data.root={tmp_path}: its lists are missing: {command} writes them, see docs/data.md"
    )
    with pytest.raises(ValueError, match="expected a list of `path label` lines"):
        small(tmp_path, splits=splits).setup()


def test_all_faults_at_once(tree, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tree, root)
    (root / "train" / "empty").mkdir()
    shutil.copytree(root / "val" / "a", root / "val" / "unseen")
    with pytest.raises(ValueError, match="2 problems") as caught:
        small(root).setup("fit")
    assert "train/empty: holds no video" in str(caught.value)
    assert "val/unseen: not one of the 3 classes of training" in str(caught.value)
    # The same folder for validation and test: what is wrong with it is said once.
    with pytest.raises(ValueError, match="2 problems"):
        small(root, splits={"train": "train", "val": "val", "test": "val"}).setup()


def test_missing_split(tree, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tree / "test", root / "validation")
    with pytest.raises(ValueError, match=r"no 'test' for test: .*found validation; data\.splits\.test=NAME"):
        small(root).setup("test")
    data = small(root, splits={"test": "validation"})  # evaluation needs this one split only
    data.setup("test")
    assert data.class_names == ["a", "b c"]
    assert len(data.index("test")) == 3
    with pytest.raises(ValueError, match="no 'train'"):
        data.setup("fit")


class Compared(str):
    """A name that counts how often one is compared."""

    __slots__ = ()
    times = 0
    __hash__ = str.__hash__

    def __str__(self):
        return self

    def __eq__(self, other):
        Compared.times += 1
        return str.__eq__(self, other)


def test_many_class_names_are_not_compared_with_each_other(tree):
    names = [Compared(f"class {i}") for i in range(1000)]
    assert small(tree, class_names=names).num_classes == 1000
    assert Compared.times < 10_000


def test_class_names_of_a_checkpoint(tree):
    """Given names decide the labels, and a folder that is none of them is a fault."""
    data = small(tree, class_names=["zero", "b c", "a"])
    assert data.index("test").labels.tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="test/b c: not one of the 1 classes"):
        small(tree, class_names=["a"]).setup("test")
    with pytest.raises(ValueError, match="repeated a"):
        small(tree, class_names=["a", "a"]).class_names  # noqa: B018


@pytest.mark.parametrize("split", ["../elsewhere", "/etc", "a/../../b"])
def test_splits_stay_inside(tree, split):
    with pytest.raises(ValueError, match="not inside the data folder"):
        small(tree, splits={"test": split}).setup("test")


def test_logs_what_was_found(tree, caplog):
    with caplog.at_level(logging.INFO, logger="dtf.data.datamodule"):
        small(tree).setup("fit")
    assert "folder: train has 5 videos of 2 classes" in caplog.text


# ---- configuration ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": {"train": {"sheme": "dense"}}}, "train: unknown key 'sheme'; did you mean 'scheme'"),
        ({"sampling": {"trian": {}}}, "data.sampling: unknown key 'trian'; did you mean 'train'"),
        ({"sampling": {"val": {"scheme": "tsn"}}}, "data.sampling.val: .*'tsn'"),
        ({"sampling": "dense"}, r"^data\.sampling: must be a mapping \{train: .*, got 'dense'$"),
        ({"splits": 3}, "data.splits: must be a mapping .*, got 3"),
        ({"splits": {"tests": "x"}}, "data.splits: unknown key 'tests'; did you mean 'test'"),
        ({"augment": {"brightnes": 1}}, "augment: unknown key 'brightnes'; did you mean 'brightness'"),
        ({"augment": {"flip": 2}}, "data.augment: .*flip"),
        ({"test_views": "3x2"}, "CLIPSxCROPS"),
        ({"batch_size": 0, "num_workers": -1, "seed": -1}, "3 problems"),
        ({"std": [1, 0, 1]}, "std above 0"),
        ({"crop_px": 64, "short_side_px": 32}, "short_side_px=32"),
    ],
)  # fmt: skip
def test_settings_are_checked_at_once(tree, settings, message):
    with pytest.raises(ValueError, match=message):
        small(tree, **settings)


def test_config_and_class_agree(tree):
    """Every key of folder.yaml is an argument and has its default, apart from those that tell a stage."""
    import inspect

    config = OmegaConf.load(Path(CONF, "data", "folder.yaml"))
    arguments = set(inspect.signature(VideoDataModule).parameters)
    assert {key for key in config if not str(key).startswith("_")} == arguments
    with initialize_config_dir(CONF, version_base=None):
        plain = compose(overrides=["+data=folder", f"data.root={tree}"]).data
    data = instantiate(plain)
    assert data.train_transform == VideoDataModule(tree).train_transform
    assert [data.view.sampler(s) for s in STAGES] == [VideoDataModule(tree).view.sampler(s) for s in STAGES]
    assert (data.view.mean, data.view.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_root_is_required():
    with initialize_config_dir(CONF, version_base=None):
        config = compose(overrides=["+data=folder"]).data
    with pytest.raises(Exception, match=r"data\.root|Missing mandatory value"):
        instantiate(config)


# ---- with Lightning ----


class Recorder(pl.LightningModule):
    """Learns a little, and writes down which clips it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, batch, batch_index):
        video = batch["video"]
        assert video.dtype == torch.float32
        self.seen.append((self.current_epoch, batch["video_index"].tolist(), float(video.sum())))
        return torch.nn.functional.cross_entropy(self.layer(video.mean((2, 3, 4))), batch["label"])

    def validation_step(self, batch, batch_index):
        assert batch["video"].shape[1:] == (3, 2, 32, 32)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tree, folder, *, max_steps: int, resume: Path | None = None, **settings) -> Recorder:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        ],
    )
    module = Recorder()
    data = small(tree, **settings)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1, "augment": {"brightness": 0.3}},
        {"batch_size": 2, "repeats": 2, "augment": {"rand_augment": {"n": 2}, "erase": {"probability": 0.5}}},
    ],
    ids=["plain", "repeated"],
)
def test_resumed_run_sees_what_the_unbroken_one_sees(tree, tmp_path, settings):
    """Stopped after any step, also at the end of an epoch (5 steps): same clips, same order, same weights."""
    unbroken = fit(tree, tmp_path / "a", max_steps=12, **settings)
    epochs = [epoch for epoch, _, _ in unbroken.seen]
    assert epochs == [0] * 5 + [1] * 5 + [2] * 2
    for stop in (2, 5, 8):
        resumed = fit(
            tree,
            tmp_path / f"b{stop}",
            max_steps=12,
            resume=tmp_path / "a" / f"step={stop}.ckpt",
            num_workers=1,
            **settings,
        )
        assert resumed.seen == unbroken.seen[stop:], stop
        assert torch.equal(resumed.layer.weight, unbroken.layer.weight)


def test_no_decoder_threads(tree):
    """One thread for each reader: frame threads do not mix with worker processes."""
    from dtf.data.storage import open_video

    with open_video(tree / "train" / "a" / "0.mp4") as reader:
        reader.read([0])
        assert reader._codec.thread_count == 1


def test_short_and_odd_videos_never_fail(tmp_path):
    """One frame, three frames, another shape in the same batch."""
    for split in ("train", "val"):
        folder = tmp_path / split / "x"
        folder.mkdir(parents=True)
        write_video(folder / "one.mp4", 1)
        write_video(folder / "three.mp4", 3, size=(48, 64))
        write_video(folder / "wide.mp4", 20, size=(128, 48))
    for scheme in ("dense", "segment", "uniform"):
        data = small(
            tmp_path, clip_length=8, frame_stride=4, batch_size=3, sampling={"train": {"scheme": scheme}}
        )
        (batch,) = data.train_dataloader()
        assert batch["error"] == [[]] * 3
        assert np.isfinite(batch["video"].float().numpy()).all()


def test_a_result_is_told_what_it_is_on(tmp_path):
    own = VideoDataModule(tmp_path)
    assert own.describe_split("test") == "test split"
    assert own.describe_split("val").startswith("validation split (on which training chooses")
    shared = VideoDataModule(tmp_path, splits={"val": "lists/val.txt", "test": "lists/../lists/val.txt"})
    assert shared.describe_split("test") == own.describe_split("val")
