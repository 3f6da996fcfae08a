"""The Lightning data module of all video data sets, from a folder of files to normalised batches."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from dtf.data import bounds
from dtf.data.augment import RandAugment, RandomErasing
from dtf.data.clip_view import STAGES, ClipView
from dtf.data.dataset import (
    Batch,
    EpochSampler,
    EvalDataset,
    ResumableLoader,
    Target,
    TrainDataset,
    class_of,
    collate,
    most_workers,
)
from dtf.data.decoders import reader_class
from dtf.data.lists import (
    VIDEOS,
    Kind,
    VideoIndex,
    index_folder,
    list_classes,
    raise_faults,
    read_list,
    repeated,
)
from dtf.data.sampling import parse_views
from dtf.data.sets.data_set import DATA_SETS
from dtf.data.settings import build, known
from dtf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Interpolation, TrainTransform

log = logging.getLogger(__name__)
_MOST_REPORT_BYTES = 1 << 26

_STAGES_OF = {
    None: STAGES,
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}

_AUGMENT_PARTS: dict[str, type] = {"rand_augment": RandAugment, "erase": RandomErasing}


class VideoDataModule(LightningDataModule):
    """Any video data set that is a folder tree ROOT/SPLIT/CLASS/VIDEO or comes as `path label` lists.

    Other data sets are subclasses that make files in `prepare_data` or override `kind`, `split_of`,
    `name_of`, `read_class_names` or `read_split`. The data folder is first looked at when classes or videos
    are asked for.

    Args:
        root: the data folder.
        name: shown in logs and results.
        splits: for train, val and test the folder or list file below root; null: this split does not exist.
        class_names: names in the order of their labels, or a text file with one per line; None: the sorted
            names of the class folders of training (for lists: their numbers).
        clip_length: frames of a clip, T.
        frame_stride: frames from one frame of a clip to the next (dense sampling only).
        crop_px: side of the square clips in pixels.
        short_side_px: evaluation: short side of the resized frame in pixels; None: crop_px.
        interpolation: evaluation: how frames are resized, "bilinear" or "bicubic"; None: bilinear.
        batch_size: clips of a batch on each process. Evaluation keeps the views of a video together, so its
            batches have max(1, batch_size // views) videos.
        repeats: training clips of each video per epoch, drawn independently and put into the same batch
            (repeated augmentation). An epoch has `repeats` times as many clips and steps, a batch still
            batch_size clips, of batch_size / repeats videos.
        num_workers: processes that decode; None: one per CPU core of this process, at most 8.
        test_views: "NxM": N clips times M crops (1 or 3) of each test video. Validation takes one central
            view.
        max_bad_fraction: share of broken videos above which training or an evaluation fails, in 0..1.
        sampling: for train, val and test the other arguments of `FrameSampler`.
        augment: the other arguments of `TrainTransform`; `rand_augment` and `erase` are mappings or None.
        mean, std: of each colour for values in 0..1.
        seed: all randomness is a function of this, the epoch and the video.
        max_read_seconds: a video that takes longer to read and decode counts as broken; None: no limit.
        decoder: what decodes video files: "pyav", or "decord" or "torchcodec" where installed; read
            `dtf.data.decoders` before choosing one of those.

    Attributes:
        normalizes: whether clips are normalised on the device; False for a graph that does it itself.
        target: what `label` is in batches.
        kind: of the files in class folders.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    normalizes = True
    target: Target = staticmethod(class_of)
    kind: Kind = VIDEOS

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        name: str = "folder",
        splits: Mapping[str, str | None] | None = None,
        class_names: Sequence[str] | str | None = None,
        clip_length: int = 16,
        frame_stride: int = 4,
        crop_px: int = 224,
        short_side_px: int | None = None,
        interpolation: Interpolation | None = None,
        batch_size: int = 8,
        repeats: int = 1,
        num_workers: int | None = None,
        test_views: str = "1x1",
        max_bad_fraction: float = 0.01,
        sampling: Mapping[str, Mapping[str, Any]] | None = None,
        augment: Mapping[str, Any] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int | None = 0,
        max_read_seconds: float | None = 60.0,
        decoder: str = "pyav",
    ) -> None:
        super().__init__()
        self.root = os.path.abspath(os.path.expanduser(os.fspath(root)))
        self.name = name
        self.splits = {stage: stage for stage in STAGES} | dict(known(splits, STAGES, "data.splits"))
        self.batch_size = batch_size
        self.repeats = repeats
        self.num_workers = most_workers() if num_workers is None else num_workers
        self.test_views = test_views
        self.max_bad_fraction = max_bad_fraction
        self.seed = 0 if seed is None else seed
        self.max_read_seconds = max_read_seconds
        self.decoder = decoder

        raise_faults("data", self._faults())
        self.num_clips, self.num_crops = parse_views(test_views)
        self.view = ClipView(
            clip_length,
            frame_stride,
            crop_px,
            short_side_px,
            interpolation,
            dict(known(sampling, STAGES, "data.sampling")),
            tuple(mean),
            tuple(std),
        )
        self.train_transform = self._build_train_transform(augment or {})

        self._given_class_names = class_names
        self._class_names: list[str] | None = None
        self._indexes: dict[str, VideoIndex] = {}
        self._left_out: dict[str, np.ndarray] = {}

    def _build_train_transform(self, augment: Mapping[str, Any]) -> TrainTransform:
        built = {
            key: None if value is None else build(_AUGMENT_PARTS[key], {}, value, f"data.augment.{key}")
            for key, value in augment.items()
            if key in _AUGMENT_PARTS
        }
        shared = {"crop_px": self.view.crop_px, "mean": self.view.mean, "std": self.view.std}
        return build(TrainTransform, shared, {**augment, **built}, "data.augment")

    def _faults(self) -> list[str]:
        """What is out of range, a line each."""
        faults = []
        if self.batch_size < 1:
            faults.append(f"batch_size must be at least 1, got {self.batch_size}")
        if self.repeats < 1 or self.batch_size % self.repeats:
            faults.append(
                "repeats must be at least 1 and divide batch_size, so that the clips of a video meet in a "
                f"batch; got repeats={self.repeats}, batch_size={self.batch_size}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            faults.append(f"max_bad_fraction must lie in 0..1, got {self.max_bad_fraction}")
        if self.num_workers < 0:
            faults.append(f"num_workers must be at least 0, got {self.num_workers}")
        if self.max_read_seconds is not None and not self.max_read_seconds > 0:
            faults.append(f"max_read_seconds must be above 0 or null, got {self.max_read_seconds}")
        if self.seed < 0:
            faults.append(f"seed must be at least 0, got {self.seed}")
        try:
            reader_class(self.decoder)
        except ValueError as error:
            faults.append(str(error))
        return faults

    @property
    def clip_length(self) -> int:
        """T of the clip view."""
        return self.view.clip_length

    # ---- what there is -------------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label. Reads the data folder on first use."""
        if self._class_names is None:
            self._class_names = self.read_class_names()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def video_path(self, stage: str, video_index: int) -> str:
        """Absolute path of a video.

        Args:
            stage: "train", "val" or "test".
            video_index: as in a batch.
        """
        return self.index(stage).path(int(video_index))

    def index(self, stage: str) -> VideoIndex:
        """The videos of a stage ("train", "val" or "test"). Reads them on first use.

        Raises:
            ValueError: the split is missing or faulty.
        """
        self.load_splits([stage])
        return self._indexes[stage]

    def describe_split(self, stage: str) -> str:
        """What a result on a stage is a result on, in words: "test split", or that it is validation.

        Args:
            stage: "val" or "test".
        """
        if stage == "test" and self._split_path("test").resolve() != self._split_path("val").resolve():
            return "test split"
        return "validation split (on which training chooses its best checkpoint)"

    def leave_out(self, stage: str, video_indices: np.ndarray) -> None:
        """Do not read these videos in evaluations of a stage ("val" or "test")."""
        self._left_out[stage] = video_indices

    def load_splits(self, stages: Sequence[str]) -> None:
        """Read the splits that are not read yet, and report the faults of all of them at once.

        Raises:
            ValueError: names every fault.
        """
        todo = [stage for stage in stages if stage not in self._indexes]
        if not todo:
            return
        self._check_root()
        faults = list(dict.fromkeys(fault for stage in todo if (fault := self._missing_split(stage))))
        raise_faults(self._where, faults)
        indexes = {stage: self.read_split(stage, faults) for stage in todo}
        raise_faults(self._where, list(dict.fromkeys(faults)))  # two stages may share a split
        for stage, index in indexes.items():
            log.info(
                "%s: %s has %d %ss of %d classes%s",
                self.name,
                stage,
                len(index),
                self.kind.word,
                self.num_classes,
                self._coverage(stage, index),
            )
        self._indexes.update(indexes)

    def split_of(self, stage: str) -> str | None:
        """The folder or list file of a stage ("train", "val", "test") below the root; None: there is none."""
        return self.splits[stage]

    def name_of(self, folder: str) -> str:
        """The name of the class whose folder has this name."""
        return folder

    def read_class_names(self) -> list[str]:
        """Names of the classes by label: as given, or from training, or from the splits that there are."""
        given = self._given_class_names
        if isinstance(given, str):
            path = Path(self.root, given)
            if not path.is_file():
                raise ValueError(
                    f"data.class_names: {path} is not a file; expected one class name per line, "
                    "or data.class_names=null for lists with numbers alone"
                )
            given = [
                line.strip()
                for line in bounds.read_regular(path).decode("utf-8-sig").splitlines()
                if line.strip()
            ]
        if given is not None:
            names = [self.name_of(str(name)) for name in given]
            twice = repeated(names)
            if twice or not names:
                raise ValueError(f"data.class_names: {'repeated ' + ', '.join(twice) if twice else 'empty'}")
            return names
        self._check_root()
        present = [stage for stage in STAGES if not self._missing_split(stage)]
        sources = ["train"] if "train" in present else present
        folders = [s for s in sources if self._split_path(s).is_dir()]
        if folders:
            names = sorted({name for s in folders for name in list_classes(self._split_path(s))})
            return [self.name_of(name) for name in names]
        faults: list[str] = [] if sources else [self._missing_split("train")]
        indexes = [read_list(self.root, str(self.split_of(s)), None, faults) for s in sources]
        raise_faults(self._where, faults)
        return [str(label) for label in range(1 + max(int(np.max(index.labels)) for index in indexes))]

    def read_split(self, stage: str, faults: list[str]) -> VideoIndex:
        """The videos of a split that exists.

        Args:
            stage: "train", "val" or "test".
            faults: takes a line for everything that is wrong.
        """
        split = str(self.split_of(stage))
        if self._split_path(stage).is_dir():
            return index_folder(self.root, split, self.class_names, faults, self.kind, self.name_of)
        return read_list(self.root, split, self.class_names, faults)

    def _coverage(self, stage: str, index: VideoIndex) -> str:
        """What `dtf.data.prepare` reports about a list: how many annotated videos it leaves out."""
        path = self._split_path(stage)
        try:
            report = path.parent / "report.json"
            if not report.is_file() or report.stat().st_size > _MOST_REPORT_BYTES:
                return ""
            row = json.loads(report.read_text("utf-8"))["splits"][path.stem]
            listed, annotated, excluded = (int(row[key]) for key in ("listed", "annotated", "excluded"))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return ""  # a list from elsewhere
        if listed != len(index):
            log.warning("%s: lists %d videos, its report.json says %d", path, len(index), listed)
        return f"; {excluded} of {annotated} annotated ones are left out, see {path.parent / 'excluded.csv'}"

    @property
    def _where(self) -> str:
        return f"data.root={self.root}"

    def _check_root(self) -> None:
        if not os.path.isdir(self.root):
            problem = "is not a folder" if os.path.exists(self.root) else "does not exist"
            files = f"ROOT/{{train,val,test}}/CLASS/{self.kind.example}"
            raise ValueError(f"{self._where}: {problem}; expected {files} or list files")

    def _split_path(self, stage: str) -> Path:
        return Path(self.root, self.split_of(stage) or "")

    def _missing_split(self, stage: str) -> str:
        """Why this split cannot be read; "" when it is there."""
        split = self.split_of(stage)
        if split is None:
            return f"data.splits.{stage} is null, but this run needs it"
        inside = Path(os.path.normpath(self._split_path(stage))).is_relative_to(self.root)
        if not inside:
            return f"data.splits.{stage}={split} is not inside the data folder"
        if split and self._split_path(stage).exists():
            return ""
        expected = f"{split}/CLASS/{self.kind.example}"
        if split.endswith(".txt"):
            if self.name in DATA_SETS:
                # The same for every split, and then said once.
                command = f"python -m dtf.data.prepare {self.name} {shlex.quote(self.root)}"
                return f"its lists are missing: {command} writes them, see docs/data.md"
            expected = "a list of `path label` lines"
        found = ", ".join(sorted(os.listdir(self.root))[:10]) or "nothing"
        return (
            f"no {split!r} for {stage}: expected {expected}, found {found}; "
            f"data.splits.{stage}=NAME takes another folder or list"
        )

    # ---- Lightning -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of "fit" (train and val), "validate", "test" or "predict" (test), all for None.

        Training does without validation videos where data.splits.val is null.

        Raises:
            ValueError: names every fault of their lists and folders.
        """
        without = ("val",) if stage == "fit" and self.splits["val"] is None else ()
        self.load_splits([name for name in _STAGES_OF[stage] if name not in without])

    def train_dataloader(self) -> ResumableLoader:
        """Random clips, batch_size of them; a short last batch is left out (unless it is the only one)."""
        index = self.index("train")
        dataset = TrainDataset(
            index,
            self.view.sampler("train"),
            self.train_transform,
            self.seed,
            self.max_read_seconds,
            self.decoder,
            self.target,
        )
        sampler = EpochSampler(len(index), shuffle=True, seed=self.seed, repeats=self.repeats)
        return self._loader(dataset, sampler, self.batch_size, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> ResumableLoader:
        """One central view of every validation video."""
        return self._eval_loader("val", 1, 1)

    def test_dataloader(self) -> ResumableLoader:
        """All views (`test_views`) of every test video."""
        return self._eval_loader("test", self.num_clips, self.num_crops)

    def _eval_loader(self, stage: str, num_clips: int, num_crops: int) -> ResumableLoader:
        transform = self.view.crops(num_crops)
        sampling = self.view.sampler(stage)
        dataset = EvalDataset(
            self.index(stage),
            sampling,
            transform,
            num_clips,
            self.max_read_seconds,
            self.decoder,
            self.target,
        )
        sampler = EpochSampler(len(dataset), shuffle=False, left_out=self._left_out.get(stage))
        return self._loader(dataset, sampler, max(1, self.batch_size // dataset.num_views), drop_last=False)

    def _loader(
        self, dataset: TrainDataset | EvalDataset, sampler: EpochSampler, batch_size: int, drop_last: bool
    ) -> ResumableLoader:
        return ResumableLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=init_worker,
            # Without its own generator, each pass would draw from the global one and thereby change the
            # dropout of a resumed run against an unbroken one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise uint8 clips on the device; a batch that is normalised already stays as it is."""
        if self.normalizes and batch["video"].dtype == torch.uint8:
            batch["video"] = self.view.normalize(batch["video"])
        return batch


def init_worker(worker_id: int) -> None:
    """One thread per decoding process: the processes are the parallelism."""
    torch.set_num_threads(1)
    # Signals to the run's group (Ctrl-C, Slurm) are for the main process, which finishes its step and saves.
    if hasattr(os, "setpgid"):  # not on Windows, which has no such signals either
        os.setpgid(0, 0)
