"""The rehearsal set `digits`: real pictures small enough to come with a package, written as an image folder.

1,797 handwritten digits of 8 x 8 pixels in 17 greys, the test part of the UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998), as scikit-learn ships it. Of each ten pictures of a digit,
in the order of that file, seven are for training, one for validation, two for the test: 1,266, 178 and 353.
All three share their writers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dtf.data.sets.imagefolder import ImageFolderDataModule
from dtf.data.sets.made import make_once
from dtf.errors import RunError

SPLIT_OF = ("train",) * 7 + ("val",) + ("test",) * 2
"""By the number of a picture among those of its digit, modulo 10."""


def write_digits(root: str | Path) -> None:
    """Write the pictures as ROOT/{train,val,test}/DIGIT/NNNN.png, once.

    NNNN is the number of the picture in the file of scikit-learn.

    Raises:
        RunError: scikit-learn is not installed.
        ValueError: `root` exists and is not this set.
    """

    def fill(folder: Path) -> None:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise RunError(
                "data=digits takes its pictures from scikit-learn: pip install -e '.[digits]'"
            ) from error
        digits = load_digits()
        for digit in range(10):
            for i, number in enumerate(np.flatnonzero(digits.target == digit).tolist()):
                path = folder / SPLIT_OF[i % 10] / str(digit) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                grey = (digits.images[number] * (255 / 16)).round().astype(np.uint8)
                Image.fromarray(grey).save(path)

    make_once(Path(root), "digits", {"version": 1}, fill)


class DigitsDataModule(ImageFolderDataModule):
    """The handwritten digits: writes its pictures on first use, then is an image folder like any other."""

    def prepare_data(self) -> None:
        """Write the pictures, unless they are there (see `write_digits`)."""
        write_digits(self.root)
