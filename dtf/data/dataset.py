"""Map-style data sets of video files, and the samplers that order them.

An item is one video. What is random in it is a pure function of (seed, epoch, index): it depends neither on
the number of workers or ranks nor on what was read before.

Shape letters: B clips, V = N * M views of one video (N clips, M crops), T frames, C = 3 colours, S side of
    the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dtf.data.decode import VideoError
from dtf.data.isolated import ReadingProcess, garbage_left_in_forks
from dtf.data.lists import VideoIndex
from dtf.data.pool import num_cores
from dtf.data.reader import FrameReader
from dtf.data.sampling import FrameSampler
from dtf.data.storage import open_video
from dtf.data.transforms import Box, Interpolation, TestTransform, TrainTransform

MAX_SUBSTITUTES = 10
"""After this many broken videos in a row for one training sample, reading stops."""

_ATTEMPTS = 1 + MAX_SUBSTITUTES


class BrokenVideo(NamedTuple):
    """A video that could not be read; as text one line, "path: reason".

    Attributes:
        path: absolute, as it is on the disk.
        reason: one line.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return str(VideoError(self.path, self.reason))


Target = Callable[[VideoIndex, int, int], Any]
"""(index, number of a video, its class after mirroring) -> what is to be found in it."""


def class_of(index: VideoIndex, video: int, label: int) -> int:
    """The target of classification: the class."""
    return label


class Sample(TypedDict):
    """One video: `video` (V, T, S, S, C) uint8, `view_index` (V,) int64, `error` as in `Batch`."""

    video: torch.Tensor
    view_index: torch.Tensor
    label: Any
    video_index: int
    error: list[BrokenVideo]


class Batch(TypedDict):
    """What the data module hands out.

    `video`: (B, C, T, S, S) uint8 from the workers, normalised float after the transfer to the device; its
    memory is channels_last_3d. `video_index`, `view_index`: (B,) int64. `label`: targets, where a task has no
    other ones (B,) int64, the classes. `error`: B lists, empty
    where all is well: the videos that a training clip stands for in their place, or the one of a clip of
    zeros in an evaluation.
    """

    video: torch.Tensor
    label: torch.Tensor
    video_index: torch.Tensor
    view_index: torch.Tensor
    error: list[list[BrokenVideo]]


class TrainDataset(Dataset[Sample]):
    """Random clips for training, one view of each video.

    Index i stands for video i % len(self); i // len(self) numbers further clips of it in the same epoch
    (repeated augmentation, see `EpochSampler`), whose frames, crop and augmentation are drawn independently.

    A video that cannot be read is replaced by another one, drawn from (seed, epoch, index); `video_index` and
    `label` are those of the video returned (the label after mirroring), `error` names the broken ones.

    Videos are read by a child process (`dtf.data.isolated`), which is this data set as it is at the first
    item.

    Args:
        index: the videos.
        sampler: chooses frames.
        transform: crops and augments.
        seed: part of what all randomness is drawn from.
        max_read_seconds: a video that takes longer counts as broken; None: no limit. Linux only.
        decoder: what decodes video files; see `dtf.data.decoders`.
        target: what `label` is.
    """

    def __init__(
        self,
        index: VideoIndex,
        sampler: FrameSampler,
        transform: TrainTransform,
        seed: int = 0,
        max_read_seconds: float | None = None,
        decoder: str = "pyav",
        target: Target = class_of,
    ) -> None:
        self.index = index
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self.max_read_seconds = max_read_seconds
        self.decoder = decoder
        self.target = target
        self._reading = ReadingProcess((1, sampler.clip_length, transform.crop_px, transform.crop_px, 3))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """Clip `index` of `epoch`; a lone index means epoch 0.

        Raises:
            VideoError: this video and ten others drawn for it are all broken.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        errors: list[BrokenVideo] = []
        repeat, video = divmod(index, len(self.index))
        for draw in range(repeat * _ATTEMPTS, (repeat + 1) * _ATTEMPTS):
            video_index = video if draw % _ATTEMPTS == 0 else self._draw(epoch, video, draw)[0]
            path = self.index.path(video_index)
            try:
                label, clip = self._reading.call(
                    path, self._read, epoch, video, draw, seconds=self.max_read_seconds
                )
            except VideoError as error:
                errors.append(BrokenVideo(path, error.reason))
                continue
            return Sample(
                video=clip,
                view_index=torch.zeros(1, dtype=torch.int64),
                label=self.target(self.index, video_index, label),
                video_index=video_index,
                error=errors,
            )
        raise VideoError(
            self.index.root, f"{len(errors)} videos in a row cannot be read, the last one: {errors[-1]}"
        )

    def _draw(self, epoch: int, video: int, draw: int) -> tuple[int, np.random.Generator]:
        """The video to read and what its clip is drawn from: in each repeat the video itself, then others."""
        rng = np.random.default_rng((self.seed, epoch, video, draw))
        return video if draw % _ATTEMPTS == 0 else int(rng.integers(len(self.index))), rng

    def _read(self, epoch: int, video: int, draw: int) -> int:
        [memory] = self._reading.memory
        clip, label = self._clip(*self._draw(epoch, video, draw), memory.numpy())
        if clip.data_ptr() != memory.data_ptr():  # augmentation has made another one
            memory.copy_(clip)
        return label

    def _clip(self, video_index: int, rng: np.random.Generator, out: np.ndarray) -> tuple[torch.Tensor, int]:
        """(T, S, S, C) uint8, in `out` unless it was augmented, and its class."""
        with open_video(self.index.path(video_index), self.decoder) as reader:
            _check_fps(self.sampler, reader)
            num_frames = self.index.usable_frames(video_index, reader.num_frames)
            indices = self.sampler.train(num_frames, reader.fps, rng)
            crop: tuple[Box, Interpolation] | None = None

            def cut(frame: torch.Tensor) -> list[torch.Tensor]:
                nonlocal crop
                if crop is None:
                    box = self.transform.draw_box(frame.shape[1], frame.shape[2], rng)
                    crop = box, self.transform.draw_interpolation(rng)
                return [self.transform.crop_frame(frame, *crop)]

            [clip] = read_views(reader, indices[None], cut, 1, self.transform.crop_px, out)
        label = int(self.index.labels[video_index])
        clip, label = self.transform.augment(clip.permute(0, 3, 1, 2), label, rng)
        return clip.permute(0, 2, 3, 1), label


class EvalDataset(Dataset[Sample]):
    """All fixed views of each video, from one decoding pass.

    View v of N clips and M crops is crop v % M of clip v // M. A video that cannot be read comes back as
    zeros with its `error`: it is never left out and never replaced. Videos are read as in `TrainDataset`.

    Args:
        index: the videos.
        sampler: chooses frames.
        transform: resizes and crops.
        num_clips: clips per video, N.
        max_read_seconds: a video that takes longer counts as broken; None: no limit. Linux only.
        decoder: what decodes video files; see `dtf.data.decoders`.
        target: what `label` is.
    """

    def __init__(
        self,
        index: VideoIndex,
        sampler: FrameSampler,
        transform: TestTransform,
        num_clips: int = 1,
        max_read_seconds: float | None = None,
        decoder: str = "pyav",
        target: Target = class_of,
    ) -> None:
        self.index = index
        self.sampler = sampler
        self.transform = transform
        self.num_clips = num_clips
        self.max_read_seconds = max_read_seconds
        self.decoder = decoder
        self.target = target
        size = transform.crop_px
        self._reading = ReadingProcess((self.num_views, sampler.clip_length, size, size, 3))

    @property
    def num_views(self) -> int:
        """Views per video, N * M."""
        return self.num_clips * self.transform.num_crops

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """All views of video `index`; the epoch has no influence."""
        index = key[1] if isinstance(key, tuple) else key
        error: list[BrokenVideo] = []
        path, label = self.index.path(index), int(self.index.labels[index])
        try:
            _, views = self._reading.call(path, self._read, index, seconds=self.max_read_seconds)
        except VideoError as fault:
            error.append(BrokenVideo(path, fault.reason))
            views = torch.zeros(self._reading.shape, dtype=torch.uint8)
        return Sample(
            video=views,
            view_index=torch.arange(self.num_views),
            label=self.target(self.index, index, label),
            video_index=index,
            error=error,
        )

    def _read(self, video_index: int) -> None:
        with open_video(self.index.path(video_index), self.decoder) as reader:
            num_frames = self.index.usable_frames(video_index, reader.num_frames)
            out = self._reading.memory.numpy()
            fixed_views(reader, self.sampler, self.transform, self.num_clips, num_frames, out)


def fixed_views(
    reader: FrameReader,
    sampler: FrameSampler,
    transform: TestTransform,
    num_clips: int = 1,
    num_frames: int | None = None,
    out: np.ndarray | None = None,
) -> torch.Tensor:
    """All fixed views of a video, as an evaluation and a prediction see it.

    Args:
        reader: of the video.
        sampler: chooses frames.
        transform: resizes and crops.
        num_clips: clips per video, N.
        num_frames: only so many of its frames; None: all.
        out: contiguous memory of what is returned; None: new memory.

    Returns:
        (N * M, T, S, S, C) uint8; view v is crop v % M of clip v // M.

    Raises:
        VideoError: it has no frame rate where the sampler needs one, or cannot be decoded.
    """
    _check_fps(sampler, reader)
    clips = sampler.test(num_frames or reader.num_frames, reader.fps, num_clips)
    return read_views(reader, clips, transform.crops, transform.num_crops, transform.crop_px, out)


def read_views(
    reader: FrameReader,
    clips: np.ndarray,
    cut: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    num_crops: int,
    size_px: int,
    out: np.ndarray | None = None,
) -> torch.Tensor:
    """Decode each wanted frame once, cut it to size while it is in the cache, and put it where it belongs.

    Args:
        reader: of the video.
        clips: (N, T) frame indices of N clips.
        cut: from a frame (C, H, W) uint8 in channels_last memory to its M crops, each (C, S, S) uint8.
        num_crops: M.
        size_px: S.
        out: contiguous memory of what is returned; None: new memory.

    Returns:
        (N * M, T, S, S, C) uint8; view v is crop v % M of clip v // M.
    """
    places: dict[int, list[tuple[int, int]]] = {}
    for n, clip in enumerate(clips.tolist()):
        for t, index in enumerate(clip):
            places.setdefault(index, []).append((n, t))
    shape = (len(clips), num_crops, clips.shape[1], size_px, size_px, 3)
    views_NMTSSC = np.empty(shape, np.uint8) if out is None else out.reshape(shape)
    for index, frame in reader.iter_frames(list(places)):
        for m, crop in enumerate(cut(torch.from_numpy(frame).permute(2, 0, 1))):
            pixels = crop.permute(1, 2, 0).numpy()
            for n, t in places[index]:
                views_NMTSSC[n, m, t] = pixels
    return torch.from_numpy(views_NMTSSC).flatten(0, 1)


def _check_fps(sampler: FrameSampler, reader: FrameReader) -> None:
    if sampler.needs_fps(reader.num_frames) and not reader.fps > 0:
        raise VideoError(reader.path, "has no frame rate, which sampling with target_fps needs")


def collate(samples: Sequence[Sample]) -> Batch:
    """Join videos to a batch of views: B is the sum of their V."""
    views = torch.tensor([len(sample["view_index"]) for sample in samples])
    videos = [sample["video"] for sample in samples]
    # In a worker default_collate writes to shared memory at once, where torch would copy a batch to.
    video_BVTHWC = default_collate(videos) if len(videos) > 1 else videos[0][None]
    return Batch(
        video=video_BVTHWC.flatten(0, 1).permute(0, 4, 1, 2, 3),
        label=default_collate([sample["label"] for sample in samples for _ in sample["view_index"]]),
        video_index=torch.tensor([sample["video_index"] for sample in samples]).repeat_interleave(views),
        view_index=torch.cat([sample["view_index"] for sample in samples]),
        error=[sample["error"] for sample in samples for _ in sample["view_index"]],
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index): every video `repeats` times per epoch over all ranks.

    The order of epoch e is a function of (seed, e) only. Where ranks do not divide the videos, the first
    ones of the order are repeated, so that every rank has equally many.

    Repeats are Hoffer et al.'s batch augmentation (CVPR 2020, arXiv 1901.09335), which MViT trains with: the
    clips of a video follow each other on one rank, so that they meet in a batch. Index v + r * num_videos is
    clip r of video v.

    Args:
        num_videos: length of the data set.
        shuffle: new order in each epoch; False: by index.
        seed: of the order.
        repeats: clips of each video per epoch, at least 1.
        left_out: numbers of videos that are not yielded.
        rank, world_size: this process among all; None: as torch.distributed says, 0 of 1 without it.

    Attributes:
        epoch: current epoch, set by `set_epoch`.
        skip: samples of this rank to leave out at the start of the next pass, to resume within an epoch.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        shuffle: bool,
        seed: int = 0,
        repeats: int = 1,
        left_out: np.ndarray | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        assert num_videos > 0
        assert repeats > 0
        assert (rank is None) is (world_size is None), "give both rank and world_size or neither"
        self.num_videos = num_videos
        self.shuffle = shuffle
        self.seed = seed
        self.repeats = repeats
        self.left_out = np.empty(0, np.int64) if left_out is None else np.unique(left_out)
        self.epoch = 0
        self.skip = 0
        self._place = None if rank is None or world_size is None else (rank, world_size)

    @property
    def place(self) -> tuple[int, int]:
        """(rank, world size)."""
        if self._place is not None:
            return self._place
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass (Lightning calls this)."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.skip = 0

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        return self._videos_per_rank * self.repeats

    @property
    def _videos_per_rank(self) -> int:
        return -(-(self.num_videos - len(self.left_out)) // self.place[1])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world_size = self.place
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_videos)
        else:
            order = np.arange(self.num_videos)
        order = order[~np.isin(order, self.left_out)]
        order = np.resize(order, self._videos_per_rank * world_size)  # numpy's resize repeats from the start
        clips = order[rank::world_size, None] + self.num_videos * np.arange(self.repeats)
        skip, self.skip = self.skip, 0
        for index in clips.flatten()[skip:].tolist():
            yield self.epoch, index


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader over an `EpochSampler` that can go on in the middle of an epoch.

    Lightning saves and restores its state with each checkpoint. It counts the batches handed out, not those
    that workers have prefetched.
    """

    _handed_out = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler = self._epoch_sampler
        assert self.batch_size is not None
        self._handed_out = sampler.skip // self.batch_size
        with garbage_left_in_forks():
            batches = super().__iter__()
        for batch in batches:
            self._handed_out += 1
            yield batch

    @property
    def _epoch_sampler(self) -> EpochSampler:
        assert isinstance(self.sampler, EpochSampler), f"not an EpochSampler: {self.sampler}"
        return self.sampler

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of its batches already handed out."""
        epoch, batches = self._epoch_sampler.epoch, self._handed_out
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved state with the next pass."""
        sampler = self._epoch_sampler
        assert self.batch_size is not None
        sampler.set_epoch(state["epoch"])
        sampler.skip = state["batches"] * self.batch_size
        self._handed_out = state["batches"]


def most_workers() -> int:
    """Processes that read where nobody says how many: one per CPU core of this process, at most 8."""
    return min(8, num_cores())
