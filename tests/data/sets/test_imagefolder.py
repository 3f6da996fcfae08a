"""Pictures in class folders: labels, names, what is tested, broken files among whole ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from dtf.data.sets.imagefolder import ImageFolderDataModule

FILES = {
    "train": {"n01440764": ["b.JPEG", "a.png"], "Zebra": ["x.webp"], "10": ["x.bmp"], "9": ["x.jpg"]},
    "val": {"9": ["x.png"], "n01440764": ["x.png", "y.png"]},
}


def tree(root: Path, splits: dict[str, dict[str, list[str]]] = FILES, side: int = 40) -> Path:
    """ROOT/SPLIT/CLASS/FILE of one grey each: 10, 20, ... in the order of `splits`."""
    grey = 10
    for split, classes in splits.items():
        for name, files in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for file in files:
                Image.fromarray(np.full((side, side + 5, 3), grey, np.uint8)).save(folder / file)
                grey += 10
    return root


def module(root: Path, **settings) -> ImageFolderDataModule:
    small = {"clip_length": 1, "frame_stride": 1, "crop_px": 16, "batch_size": 2, "num_workers": 0}
    still = {"augment": {"crop": "center", "flip": 0.0}}
    return ImageFolderDataModule(root, splits={"test": "test"}, **(small | still | settings))


def test_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    data = module(tree(tmp_path))
    data.setup()
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = data.train_dataloader().dataset.index
    assert [(ours.path(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples
    assert data.class_names == ["10", "9", "Zebra", "tench (n01440764)"]
    (first, second) = data.val_dataloader()
    assert [*first["label"].tolist(), *second["label"].tolist()] == [1, 3, 3]
    assert first["video"].shape == (2, 3, 1, 16, 16)
    assert first["video"].unique().tolist() == [60, 70]


def test_files_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path)
    for name in (".hidden.png", "notes.txt", "film.mp4"):
        (tmp_path / "train" / "9" / name).write_bytes(b"x")
    data = module(tmp_path)
    data.setup("fit")
    assert len(data.train_dataloader().dataset.index) == 5
    (tmp_path / "train" / "9" / "x.jpg").unlink()
    (tmp_path / "train" / "9" / "film.mp4").rename(tmp_path / "train" / "9" / "x.tiff")
    with pytest.raises(ValueError, match=r"train/9: holds no picture \(known endings: \.bmp \.jpeg"):
        module(tmp_path).setup("fit")
    with pytest.raises(ValueError, match=r"expected ROOT/\{train,val,test\}/CLASS/\*\.jpg"):
        module(tmp_path / "none").setup("fit")


def test_names_of_classes_that_are_no_nouns_of_wordnet(tmp_path: Path) -> None:
    data = module(tree(tmp_path, {"train": {"n99999999": ["x.png"], "n0144076": ["x.png"]}}))
    assert data.class_names == ["n0144076", "n99999999"]


def test_given_names_are_those_of_folders(tmp_path: Path) -> None:
    """As a list of names is kept beside ImageNet, in another order."""
    data = module(tree(tmp_path), class_names=["n01440764", "Zebra", "9", "10"])
    data.setup("fit")
    assert data.class_names == ["tench (n01440764)", "Zebra", "9", "10"]
    assert data.train_dataloader().dataset.index.labels.tolist() == [3, 2, 1, 0, 0]


@pytest.mark.parametrize("flat", [False, True])
def test_val_is_tested_where_no_test_has_labels(tmp_path: Path, flat: bool) -> None:
    tree(tmp_path)
    if flat:  # as ImageNet's: pictures without class folders
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"x")
    data = module(tmp_path)
    data.setup("test")
    assert [b["label"].tolist() for b in data.test_dataloader()] == [[1, 3], [3]]
    assert data.describe_split("test").startswith("validation split")
    tree(tmp_path / "other", FILES | {"test": {"9": ["x.png"]}})
    data = module(tmp_path / "other")
    data.setup("test")
    assert [b["label"].tolist() for b in data.test_dataloader()] == [[1]]
    assert data.describe_split("test") == "test split"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_pictures_among_whole_ones(tmp_path: Path, num_workers: int) -> None:
    """Each stands once among the faults of its own sample: replaced in training, blank in evaluation."""
    names = [f"{i}.png" for i in range(6)]
    tree(tmp_path, {split: {"a": names, "b": names} for split in ("train", "val")})
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    contents = {"a/2.png": b"", "a/4.png": whole[:60], "b/1.png": b"no picture" * 9}
    for split in ("train", "val"):
        for file, content in contents.items():
            (tmp_path / split / file).write_bytes(content)
    data = module(tmp_path, num_workers=num_workers)
    data.setup("fit")
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        samples = [
            (index, clip, [error.path for error in errors])
            for batch in loader
            for index, clip, errors in zip(
                batch["video_index"].tolist(), batch["video"], batch["error"], strict=True
            )
        ]
        assert len(samples) == 12
        broken = {str(tmp_path / split / file) for file in contents}
        assert {path for _, _, errors in samples for path in errors} == broken
        if split == "val":
            assert [index for index, _, _ in samples] == list(range(12))
            assert {data.video_path("val", i): errors for i, _, errors in samples if errors} == {
                path: [path] for path in broken
            }
        assert all(bool(clip.any()) is (split == "train" or not errors) for _, clip, errors in samples)


def test_pictures_larger_and_smaller_than_the_crop(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train": {"a": ["x.png"]}, "val": {"a": ["x.png"]}}, side=3)
    data = module(root, interpolation="bicubic", augment={"interpolation": "random"}, batch_size=1)
    data.setup("fit")
    assert [b["video"].shape for b in data.train_dataloader()] == [(1, 3, 1, 16, 16)]
    (batch,) = data.val_dataloader()
    assert batch["video"].unique().tolist() == [20]
