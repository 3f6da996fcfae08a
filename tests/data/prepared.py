"""What the tests of `dtf.data.prepare` share: small trees, and what a run has written of them."""

from __future__ import annotations

import csv
from pathlib import Path

from video_files import numbers_of, write_video

from dtf.data.decode import VideoReader

SPLITS = {"k400": ("train", "val"), "ssv2": ("train", "val"), "diving48": ("train", "test")}


def read_lists(root, splits):
    return {split: (root / "lists" / f"{split}.txt").read_text().splitlines() for split in splits}


def names_of(lines):
    return [Path(line.rpartition(" ")[0]).stem for line in lines]


def excluded(root):
    with open(root / "lists" / "excluded.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


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
