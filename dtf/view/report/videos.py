"""The section of right and wrong videos, with frames as the network saw them."""

from __future__ import annotations

import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf.files import at
from dtf.text import cell
from dtf.view.pictures import strip
from dtf.view.report.blocks import Block, image

if TYPE_CHECKING:
    from dtf.runs.reading import Run, Video

VIDEOS_SHOWN = 6
"""Of the right ones, and of the wrong ones."""
FRAMES_SHOWN = 6
FRAME_PX = 112
MOST_CLIP_BYTES = 1 << 29
"""A clip of more is none of a run, and is not read."""
_NO_FRAMES = "no frames: frames=true shows those of a run of your own"


def choose_videos(videos: Sequence[Video], right: bool) -> list[Video]:
    """A few right or wrong videos, the surest of each class first."""
    found = sorted(
        (v for v in videos if v.prediction and (v.prediction == v.label) == right),
        key=lambda v: (-v.score, v.path),
    )
    seen: dict[str, int] = defaultdict(int)
    ranked = []
    for video in found:
        ranked.append((seen[video.label], video))
        seen[video.label] += 1
    # One of each class before the second one of any.
    return [video for _, video in sorted(ranked, key=lambda item: item[0])[:VIDEOS_SHOWN]]


def videos(run: Run, frames: bool) -> list[Block]:
    """A few videos, the surest wrong ones and the surest right ones; `frames`: with frames."""
    read = _reader(run.config) if frames else lambda path: _NO_FRAMES
    root = at(run.config, "data", "root")
    names = {cell(name): name for name in run.results.get("per_class", {})}
    blocks: list[Block] = []
    for right, heading in ((False, "Wrong, the surest first"), (True, "Right, the surest first")):
        clips = []
        for video in choose_videos(run.videos, right):
            picture = read(video.path)
            label, prediction = (names.get(name, name) for name in (video.label, video.prediction))
            path = _below(video.path, root)
            clip: Block = {"kind": "right" if right else "wrong", "label": label, "prediction": prediction}
            clip |= {"score": f"{video.score:.0%}", "path": path}
            if isinstance(picture, bytes):
                alt = f"Frames of {path}: {label}, taken for {prediction} ({video.score:.0%})."
                clip["image"] = image(picture, "jpeg", alt, "frames")
            else:
                clip["reason"] = picture
            clips.append(clip)
        if clips:
            blocks.append({"heading": heading, "clips": clips})
    return blocks


def _reader(config: Mapping[str, Any]) -> Callable[[str], bytes | str]:
    """A function from a path to the frames that the network sees there, as JPEG, or why there are none.

    Only below data.root: what scores.csv names may lie anywhere.
    """
    from PIL import Image

    # Late: a page without frames takes a second, with them torch and PyTorchVideo are loaded.
    from dtf.data.clip_view import CLIP_KEYS, ClipView
    from dtf.data.dataset import EvalDataset
    from dtf.data.lists import VideoIndex

    settings = config.get("data") or {}
    root = at(config, "data", "root")
    # Only a view of clips, with plain values: a folder does not say what class to build.
    try:
        view = ClipView.from_settings(
            ClipView().settings() | {k: settings[k] for k in CLIP_KEYS if k in settings}
        )
        limit, decoder = settings.get("max_read_seconds", 60.0), settings.get("decoder", "pyav")
        if limit is not None and not 0 < (limit := float(limit)) < math.inf:
            raise ValueError(f"max_read_seconds={limit}")
        if 3 * view.clip_length * view.crop_px**2 > MOST_CLIP_BYTES:
            raise ValueError(f"clips of more than {MOST_CLIP_BYTES >> 20} MiB")
    except (TypeError, ValueError) as error:
        reason = f"no frames: the settings of the data do not tell how to read them ({error})"
        return lambda path: reason

    def read(path: str) -> bytes | str:
        if not _lies_below(path, root):
            return f"no frames: the video does not lie below data.root={root}, as seen from here"
        index = VideoIndex(os.sep, [os.path.abspath(path)], [0])
        sample = EvalDataset(index, view.sampler(), view.crops(), 1, limit, decoder)[0]
        if sample["error"]:
            return f"no frames: {sample['error'][0]}"
        file = io.BytesIO()
        picture = strip(sample["video"][0].numpy(), FRAMES_SHOWN, FRAME_PX)
        Image.fromarray(picture).save(file, format="JPEG", quality=80)
        return file.getvalue()

    return read


def _below(path: str, root: Any) -> str:
    """A path as seen from the data folder; as it is where it lies elsewhere."""
    return os.path.relpath(path, root) if _lies_below(path, root) else path


def _lies_below(path: str, root: Any) -> bool:
    # As the paths are written: links below the data folder are its owner's decision.
    return isinstance(root, str) and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
