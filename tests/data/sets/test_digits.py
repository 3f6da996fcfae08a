"""The handwritten digits: their pictures are scikit-learn's, split evenly, written once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtf.data.sets.digits import DigitsDataModule, write_digits
from dtf.errors import RunError

SIZES = {"train": 1266, "val": 178, "test": 353}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn", reason="the pictures are scikit-learn's")
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


def test_every_picture_is_there_once(digits: Path) -> None:
    from sklearn.datasets import load_digits

    given = load_digits()
    files = {split: sorted((digits / split).glob("*/*.png")) for split in SIZES}
    assert {split: len(paths) for split, paths in files.items()} == SIZES
    everything = [path for paths in files.values() for path in paths]
    assert sorted(int(path.stem) for path in everything) == list(range(1797))
    for path in everything[::100]:
        number = int(path.stem)
        assert path.parent.name == str(given.target[number])
        grey = np.asarray(Image.open(path), float)
        assert np.array_equal((grey / 255 * 16).round(), given.images[number])


def test_they_are_an_image_folder(digits: Path) -> None:
    data = DigitsDataModule(digits, splits={"test": "test"}, clip_length=1, crop_px=32, num_workers=0)
    data.prepare_data()  # written before, and left as they are
    data.setup("test")
    assert data.class_names == [str(digit) for digit in range(10)]
    batch = next(iter(data.test_dataloader()))
    assert batch["video"].shape == (8, 3, 1, 32, 32)
    assert data.describe_split("test") == "test split"


def test_another_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"mine holds no digits set; wanted: .* Delete that folder or set"):
        write_digits(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RunError, match=r"pip install -e '\.\[digits\]'"):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
