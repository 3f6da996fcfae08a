"""Which annotation files there are, and what they say."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from dtf.data.annotations import WITHHELD, AnnotatedSet, read_path_lists
from dtf.data.lists import raise_faults
from dtf.data.sets.data_set import DataSet
from dtf.text import printable


def read_annotations(
    args: argparse.Namespace, data_set: DataSet, root: Path, skipped: list[str]
) -> tuple[AnnotatedSet, dict[str, Path]]:
    """Find and read the annotation files.

    Args:
        args: as parsed.
        data_set: which.
        root: its folder.
        skipped: takes the faults of rows that are left out (`--skip-bad-rows`).

    Returns:
        The records of the splits to prepare, and the files they come from by role.

    Raises:
        ValueError: files are missing, ambiguous or faulty.
    """
    files = _find_files(args, data_set, root)
    chosen = args.splits.split(",") if args.splits else [s for s in data_set.official if s in files]
    unknown = [s for s in chosen if s not in data_set.official]
    absent = [s for s in chosen if s in data_set.official and s not in files]
    if unknown:
        raise ValueError(
            f"--splits: {data_set.title} has {', '.join(data_set.official)}, not {', '.join(unknown)}"
        )
    if absent or not chosen:
        what = ", ".join(absent) or "any split"
        wanted = ", ".join(data_set.files[s] for s in absent or data_set.official)
        raise ValueError(
            f"no annotation file of {what} found (a name like {wanted}); --annotations DIR says where"
        )
    splits = {split: files[split] for split in chosen}
    faults: list[str] = []
    lists = [split for split, path in splits.items() if not data_set.is_annotation(path)]
    if lists and len(lists) < len(splits):
        raise ValueError(
            f"{', '.join(lists)}: is a list of paths, but the other splits have official annotations"
        )
    if lists:
        names = data_set.read_class_names(files["labels"]) if "labels" in files else None
        annotated = read_path_lists(splits, names, faults)
    elif (role := data_set.required) is not None and role not in files:
        raise ValueError(f"no file {data_set.files[role]} found; --{role} FILE says where it is")
    else:
        annotated = data_set.read(splits, files, faults)
    if not args.skip_bad_rows:
        raise_faults("annotations", faults)
    skipped.extend(faults)
    for split in list(annotated.splits):
        if args.splits is None and (annotated.splits[split].labels == WITHHELD).all():
            del annotated.splits[split]  # a test split without labels serves no one but who asks for it
            del files[split]
    return annotated, files


def _find_files(args: argparse.Namespace, data_set: DataSet, root: Path) -> dict[str, Path]:
    folders = [args.annotations] if args.annotations else [root, root / "annotations", root / "labels"]
    names = [(folder, name) for folder in folders if folder.is_dir() for name in sorted(os.listdir(folder))]
    files: dict[str, Path] = {}
    for role in dict.fromkeys([*data_set.files, *data_set.options]):
        given = getattr(args, role, None)
        pattern = data_set.files.get(role)
        if given is not None:
            files[role] = given
        elif pattern is not None:
            found = [folder / name for folder, name in names if re.fullmatch(pattern, name, re.IGNORECASE)]
            if len(found) > 1:
                both = ", ".join(printable(str(path)) for path in found)
                raise ValueError(f"several annotation files for {role}: {both}; choose with --{role} FILE")
            if found:
                files[role] = found[0]
    return files
