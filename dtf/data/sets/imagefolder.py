"""Pictures in class folders, as ImageNet is kept: videos of one frame, on the road of all videos.

Nothing here reads a picture: `dtf.data.pictures` does, behind the interface of every source of frames.
"""

from __future__ import annotations

import functools
import os
import re

from dtf.data.datamodule import VideoDataModule
from dtf.data.lists import PICTURES, list_classes

_SYNSET = re.compile(r"n[0-9]{8}")


class ImageFolderDataModule(VideoDataModule):
    """ROOT/{train,val}/CLASS/PICTURE, labels in the order of the folders' names as torchvision's ImageFolder.

    Where ROOT/test has no class folders (ImageNet's has none: its labels are withheld), the pictures of
    "val" are tested, and `describe_split` says so. Folders named by the WordNet id of their class show its
    name too.

    Args:
        root: the data folder.
        **settings: of `VideoDataModule`.
    """

    kind = PICTURES

    def split_of(self, stage: str) -> str | None:
        """See `VideoDataModule`; without class folders in a folder "test" it is that of "val"."""
        split = super().split_of(stage)
        if stage == "test" and split == "test":
            folder = os.path.join(self.root, split)
            if not os.path.isdir(folder) or not list_classes(folder):
                return self.splits["val"]
        return split

    def name_of(self, folder: str) -> str:
        """ "tench (n01440764)" for "n01440764", the id of a noun in WordNet; other names stay as they are."""
        word = _synset_words().get(folder) if _SYNSET.fullmatch(folder) else None
        return f"{word} ({folder})" if word else folder


@functools.cache
def _synset_words() -> dict[str, str]:
    """WordNet id -> first word for it, of all classes of ImageNet."""
    # Late: importing timm takes a second, and most folders have names of their own.
    from timm.data import ImageNetInfo

    words = {}
    for subset in ("imagenet-22k", "imagenet-1k"):
        known = ImageNetInfo(subset)
        for name in known.label_names():
            words[name] = known.label_name_to_description(name).split(",")[0].strip()
    return words
