"""What is known of a data set before looking at it, and the table of those that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dtf.data.annotations import AnnotatedSet

DATA_SETS: dict[str, DataSet] = {}
"""By name: of the command (`python -m dtf.data.prepare NAME`) and of `conf/data/NAME.yaml`."""


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set with annotations of its own.

    A *role* is what an annotation file is for: the name of a split, or what `options` names besides.

    Attributes:
        title: its name.
        num_classes: classes.
        official: videos of each split by the official annotations.
        files: for roles, a pattern of the name of the file (matched whole, in either case).
        options: roles that are not splits, with their help on the command line; "labels" is one, always.
        required: the role without which the official annotations cannot be read; None: there is none.
        example: name of a video file, for messages.
        read: reads the official annotations: takes the files of the splits to read, all files by role, and a
            list that takes a line for each fault (the rows concerned are left out).
        read_class_names: reads the file of the role "labels": names in the order of their labels.
        is_annotation: whether a file is an official annotation, rather than a list of `path label` lines.
        key: the name of a video as the annotations have it, from the name of a file without its ending.
    """

    title: str
    num_classes: int
    official: Mapping[str, int]
    files: Mapping[str, str]
    options: Mapping[str, str]
    required: str | None = None
    example: str
    read: Callable[[Mapping[str, Path], Mapping[str, Path], list[str]], AnnotatedSet] = field(repr=False)
    read_class_names: Callable[[Path], list[str]] = field(repr=False)
    is_annotation: Callable[[Path], bool] = field(default=_is_json, repr=False)
    key: Callable[[str], str] = field(default=str, repr=False)


def register(name: str, data_set: DataSet) -> None:
    """Make a data set known under a name.

    Raises:
        ValueError: the name is taken.
    """
    if name in DATA_SETS:
        raise ValueError(f"there is a data set {name!r} already: {DATA_SETS[name].title}")
    DATA_SETS[name] = data_set
