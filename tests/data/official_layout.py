"""Small copies of Kinetics-400, Something-Something v2 and Diving48: official files, names and folders.

Each holds real and generated videos and one fault of every kind; what the report has to say is returned.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from video_files import painted, write_audio_only, write_video

K400_CLASSES = ["abseiling", "air drumming", "massaging person's head", "passing American football (in game)"]
SSV2_TEMPLATES = ["Holding [something]", "Pulling [something] from left to right", "Pushing [something]"]
DIVES = [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]]


@dataclass
class Layout:
    """A data set on disk.

    Attributes:
        root: its folder.
        excluded: reason (a part of it) for each video that must not be listed.
        listed: names of the videos of each split that must be listed.
    """

    root: Path
    excluded: dict[str, str] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)


def write_faults(names: Iterator[str], folder: Path, ending: str, layout: Layout) -> list[str]:
    """One file of each kind that cannot be used, called as `names` says; returns the names."""
    used = []

    def path(reason: str) -> Path:
        used.append(next(names))
        layout.excluded[used[-1]] = reason
        return folder / f"{used[-1]}{ending}"

    path("is empty (0 bytes)").write_bytes(b"")
    path("cannot be opened as a video").write_text("<html>This video is no longer available</html>")
    path("cannot be opened as a video").write_bytes(bytes(range(256)) * 20)
    whole = write_video(folder / "whole.mp4", 20).read_bytes()
    (folder / "whole.mp4").unlink()
    path("cannot be opened as a video").write_bytes(whole[: whole.index(b"moov")])
    silent = write_audio_only(folder / "silent.mp4")
    shutil.move(silent, path("has no video stream"))
    path("is a link to a missing file").symlink_to("nowhere.mp4")
    path("missing")
    return used


def write_jpegs(folder: Path, count: int) -> None:
    """A folder of painted frames in the layout of the SIFA / DTF code."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(painted(number)).save(folder / f"{number + 1:05d}.jpg", quality=95)


def write_lmdb(folder: Path, count: int) -> None:
    """An LMDB of painted frames in the layout of the SIFA / DTF code."""
    import lmdb

    folder.mkdir(parents=True)
    with (
        lmdb.open(str(folder), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number in range(count):
            image = io.BytesIO()
            Image.fromarray(painted(number)).save(image, "JPEG", quality=95)
            transaction.put(f"{number + 1:06d}.jpg".encode(), image.getvalue())


def k400(root: Path, real_videos: list[Path]) -> Layout:
    """Kinetics-400: a folder for each class below train and val, with blanks or with underscores."""
    layout = Layout(root)
    youtube = (f"{'-_'[i % 2]}{i:010d}" for i in itertools.count())  # many ids begin with "-"
    names = (f"{video}_{10 * i:06d}_{10 * i + 10:06d}" for i, video in enumerate(youtube))
    class_of: dict[str, tuple[str, str]] = {}
    for split in ("train", "val"):
        listed = layout.listed[split] = []
        for k, label in enumerate(K400_CLASSES):
            folder = root / split / (label if k % 2 else label.replace(" ", "_"))
            folder.mkdir(parents=True)
            for _ in range(2):
                name = next(names)
                write_video(folder / f"{name}.mp4", 40)
                listed.append(name)
                class_of[name] = (split, label)
            if k == 0:
                for video in real_videos:
                    name = next(names)
                    shutil.copy(video, folder / f"{name}.mp4")
                    listed.append(name)
                    class_of[name] = (split, label)
                for name in write_faults(names, folder, ".mp4", layout):
                    class_of[name] = (split, label)
    for split in ("train", "val"):
        rows = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for name, (where, label) in class_of.items():
            if where == split:
                quoted = f'"{label}"' if " " in label else label
                rows.append(f"{quoted},{name[:11]},{int(name[12:18])},{int(name[19:])},{split},0")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "annotations" / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n"
    )
    return layout


def ssv2(root: Path, real_videos: list[Path]) -> Layout:
    """Something-Something v2: one flat folder of webm files, here with some videos stored as frames."""
    layout = Layout(root)
    folder = root / "20bn-something-something-v2"
    folder.mkdir(parents=True)
    numbers = (str(number) for number in itertools.count(1, 7))
    for split in ("train", "validation"):
        listed = []
        for _ in range(3):
            listed.append(next(numbers))
            write_video(folder / f"{listed[-1]}.webm", 24, codec="libvpx-vp9", fps=12)
        for video in real_videos[:1]:
            listed.append(next(numbers))
            shutil.copy(video, folder / f"{listed[-1]}.webm")  # never trust the ending
        listed.append(next(numbers))
        write_jpegs(folder / listed[-1], 24)
        listed.append(next(numbers))
        write_lmdb(folder / listed[-1], 24)
        layout.listed["train" if split == "train" else "val"] = listed
        faulty = write_faults(numbers, folder, ".webm", layout)
        faulty.append(next(numbers))
        (folder / faulty[-1]).mkdir()
        layout.excluded[faulty[-1]] = "holds no numbered JPEG images"
        entries = [
            {
                "id": name,
                "label": "pushing a cup",
                "template": SSV2_TEMPLATES[i % len(SSV2_TEMPLATES)],
                "placeholders": ["a cup"],
            }
            for i, name in enumerate(listed + faulty)
        ]
        (root / f"something-something-v2-{split}.json").write_text(json.dumps(entries, indent=1))
    labels = {t.replace("[", "").replace("]", ""): str(i) for i, t in enumerate(SSV2_TEMPLATES)}
    (root / "something-something-v2-labels.json").write_text(json.dumps(labels))
    (root / "something-something-v2-test.json").write_text(json.dumps([{"id": "220000"}]))
    return layout


def diving48(root: Path, real_videos: list[Path]) -> Layout:
    """Diving48: one folder, names with underscores and hyphens, splits train and test, 48 classes."""
    layout = Layout(root)
    folder = root / "rgb"
    folder.mkdir(parents=True)
    names = (f"{'_' if i % 2 else '-'}a_b-c{i:05d}_{i:05d}" for i in itertools.count())
    for split in ("train", "test"):
        listed = layout.listed[split] = [next(names) for _ in range(4)]
        for name in listed[:3]:
            write_video(folder / f"{name}.mp4", 30, fps=25)
        shutil.copy(real_videos[0], folder / f"{listed[3]}.mp4")
        faulty = write_faults(names, folder, ".mp4", layout)
        entries = [
            {"vid_name": name, "label": i % 47, "start_frame": 0, "end_frame": 30}
            for i, name in enumerate(listed + faulty)
        ]
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))
    words = [[*DIVES[i % 2][:3], f"POSITION{i}"] for i in range(48)]
    (root / "Diving48_vocab.json").write_text(json.dumps(words))
    return layout


LAYOUTS = {"k400": k400, "ssv2": ssv2, "diving48": diving48}
