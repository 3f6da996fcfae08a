"""Data sets and samplers: exact frames of every view, randomness, broken videos, coverage over ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_tree
from video_files import numbers_of, painted, write_video

from dtf.data.augment import RandAugment, RandomErasing
from dtf.data.datamodule import init_worker
from dtf.data.dataset import EpochSampler, EvalDataset, ResumableLoader, TrainDataset, collate
from dtf.data.decode import VideoError
from dtf.data.lists import VideoIndex
from dtf.data.sampling import FrameSampler
from dtf.data.transforms import TestTransform, TrainTransform

PLAIN = TrainTransform(48, crop="center", flip=0.0)


@pytest.fixture(scope="module")
def square_videos(tmp_path_factory):
    """Four videos of 48 x 48 pixels whose frames count from 0, of 3, 20, 40 and 61 frames."""
    root = tmp_path_factory.mktemp("square")
    lengths = [3, 20, 40, 61]
    for i, length in enumerate(lengths):
        write_video(root / f"{i}.mp4", length, size=(48, 48))
    return VideoIndex(root, [f"{i}.mp4" for i in range(4)], range(4)), lengths


@pytest.mark.parametrize("scheme", ["dense", "segment", "uniform"])
def test_training_frames_are_those_of_the_sampler(square_videos, scheme):
    """Read back from the pixels, for each video and several epochs, short videos included."""
    index, lengths = square_videos
    for short in ("loop", "clamp"):
        sampler = FrameSampler(8, 3, scheme, short)
        dataset = TrainDataset(index, sampler, PLAIN, seed=5)
        for i, epoch in itertools.product(range(4), range(3)):
            item = dataset[epoch, i]
            expected = sampler.train(lengths[i], 30.0, np.random.default_rng((5, epoch, i, 0)))
            assert item["video"].shape == (1, 8, 48, 48, 3)
            assert numbers_of(item["video"][0].numpy()) == expected.tolist()
            assert (item["label"], item["video_index"], item["error"]) == (i, i, [])


@pytest.mark.parametrize("scheme", ["dense", "segment", "uniform"])
def test_views_are_those_of_the_sampler(square_videos, scheme):
    """View v of N clips and M crops is crop v % M of clip v // M."""
    index, lengths = square_videos
    sampler = FrameSampler(8, 3, scheme)
    dataset = EvalDataset(index, sampler, TestTransform(48, num_crops=3), num_clips=2)
    assert dataset.num_views == 6
    for i in range(4):
        item = dataset[i]
        expected = sampler.test(lengths[i], 30.0, 2)
        assert item["video"].shape == (6, 8, 48, 48, 3)
        assert item["view_index"].tolist() == list(range(6))
        for view in range(6):
            assert numbers_of(item["video"][view].numpy()) == expected[view // 3].tolist()


def test_crops_of_a_view(tmp_path):
    """The blocks of a wide picture: left crop, middle and right in this order."""
    write_video(tmp_path / "v.mp4", [0b0110_0011_1001] * 4, size=(96, 48))
    dataset = EvalDataset(
        VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(2, 1), TestTransform(48, num_crops=3)
    )
    views = dataset[0]["video"][:, 0].float()
    wide = torch.from_numpy(painted(0b0110_0011_1001, 48, 96)).float()
    for view, left in zip(views, (0, 24, 48), strict=True):
        assert (view - wide[:, left : left + 48]).abs().mean() < 8  # compression apart
    assert (views[0] - views[2]).abs().mean() > 50


def test_video_is_decoded_once_for_all_views(square_videos, monkeypatch):
    from dtf.data import dataset as module

    opened = []

    def open_once(path, decoder):
        opened.append(path)
        assert len(opened) == 1
        return original(path, decoder)

    original = module.open_video
    monkeypatch.setattr(module, "open_video", open_once)
    dataset = EvalDataset(square_videos[0], FrameSampler(8, 3), TestTransform(32, num_crops=3), num_clips=10)
    assert dataset[3]["error"] == []
    assert "AssertionError" in dataset[3]["error"][0].reason, "the probe works"


# ---- broken videos ----


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    for i in range(3):
        write_video(root / f"{i}.mp4", 4, size=(48, 48))
    (root / "bad.mp4").write_text("not a video")
    return VideoIndex(root, ["bad.mp4", "0.mp4", "1.mp4", "2.mp4"], [9, 0, 1, 2])


def test_training_replaces_broken_videos(partly_broken):
    dataset = TrainDataset(partly_broken, FrameSampler(2), PLAIN)
    drawn = set()
    for epoch in range(20):
        item = dataset[epoch, 0]
        again = dataset[epoch, 0]
        assert item["video_index"] == again["video_index"] != 0
        assert torch.equal(item["video"], again["video"])
        assert item["label"] == partly_broken.labels[item["video_index"]]
        path, reason = item["error"][0]
        assert path == partly_broken.path(0)
        assert reason.startswith("cannot be opened as a video")
        drawn.add(item["video_index"])
    assert drawn == {1, 2, 3}


def test_training_gives_up_when_all_are_broken(tmp_path):
    (tmp_path / "bad.mp4").touch()
    dataset = TrainDataset(VideoIndex(tmp_path, ["bad.mp4"], [0]), FrameSampler(2), PLAIN)
    with pytest.raises(VideoError, match=r"11 videos in a row cannot be read.*bad\.mp4: is empty"):
        dataset[0, 0]


def test_evaluation_keeps_broken_videos(partly_broken):
    dataset = EvalDataset(partly_broken, FrameSampler(2), TestTransform(48, num_crops=3), num_clips=2)
    batch = collate([dataset[0], dataset[1]])
    assert batch["video"].shape == (12, 3, 2, 48, 48)
    assert batch["video_index"].tolist() == [0] * 6 + [1] * 6
    assert batch["view_index"].tolist() == [*range(6), *range(6)]
    assert batch["label"].tolist() == [9] * 6 + [0] * 6
    assert (batch["video"][:6] == 0).all()
    assert len(batch["error"]) == 12
    assert all("cannot be opened" in error.reason for [error] in batch["error"][:6])
    assert not any(batch["error"][6:])
    assert batch["video"].is_contiguous(memory_format=torch.channels_last_3d)


def test_target_fps_without_a_rate(tmp_path, monkeypatch):
    """A reason of the video, not a crash of the run."""
    from dtf.data.decode import VideoReader

    write_video(tmp_path / "v.mp4", 4, size=(48, 48))
    build = VideoReader._build_table
    monkeypatch.setattr(
        VideoReader, "_build_table", lambda self, *a: (build(self, *a), setattr(self, "fps", 0.0))
    )
    dataset = EvalDataset(
        VideoIndex(tmp_path, ["v.mp4"], [0]), FrameSampler(2, target_fps=30), TestTransform(48)
    )
    [error] = dataset[0]["error"]
    assert str(error) == f"{tmp_path}/v.mp4: has no frame rate, which sampling with target_fps needs"


# ---- samplers and loaders ----


@pytest.mark.parametrize("num_videos", [1, 2, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_video_once_over_ranks(num_videos, world_size, shuffle):
    """Repeats only fill up the last round, and every rank has equally many."""
    samplers = [
        EpochSampler(num_videos, shuffle=shuffle, seed=3, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for epoch in range(2):
        seen = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            pairs = list(sampler)
            assert len(pairs) == len(sampler)
            assert {e for e, _ in pairs} == {epoch}
            seen.append([index for _, index in pairs])
        together = [i for round_ in zip(*seen, strict=True) for i in round_]
        assert sorted(together[:num_videos]) == list(range(num_videos))
        assert len(together) - num_videos < world_size


@pytest.mark.parametrize("left_out", [[], [0, 3], [4], list(range(5))])
def test_videos_that_are_left_out(left_out):
    samplers = [
        EpochSampler(5, shuffle=False, left_out=np.array(left_out, np.int64), rank=r, world_size=2)
        for r in range(2)
    ]
    seen = [[index for _, index in sampler] for sampler in samplers]
    assert len(seen[0]) == len(seen[1]) == len(samplers[0]) == (6 - len(left_out)) // 2
    assert set(seen[0]) | set(seen[1]) == set(range(5)) - set(left_out)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.fixture(scope="module")
def many_videos(tmp_path_factory):
    """Thirteen videos; each has its index painted into all frames."""
    root = make_tree(tmp_path_factory.mktemp("many"), {"train": {"a": 13}})
    return VideoIndex(root, [f"train/a/{i}.mp4" for i in range(13)], range(13))


def loader_of(
    dataset, world_size: int, rank: int, num_workers: int, *, batch_size: int = 2, **settings
) -> ResumableLoader:
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=init_worker,
        sampler=EpochSampler(len(dataset), rank=rank, world_size=world_size, **settings),
    )


def test_coverage_and_randomness_over_ranks_and_workers(many_videos):
    """1, 2, 3 ranks times 0, 1, 2 workers: each video once, every clip the same bits."""
    sampler = FrameSampler(2, 1)
    transform = TrainTransform(32, flip=0.5, brightness=0.3)
    dataset = TrainDataset(many_videos, sampler, transform, seed=1)
    reference: dict[int, torch.Tensor] = {}
    for world_size, num_workers in [(1, 0), (1, 2), (2, 1), (3, 2)]:
        seen: list[int] = []
        for rank in range(world_size):
            loader = loader_of(dataset, world_size, rank, num_workers, shuffle=True, seed=1)
            loader.sampler.set_epoch(4)
            for batch in loader:
                for clip, index in zip(batch["video"], batch["video_index"].tolist(), strict=True):
                    assert torch.equal(clip, reference.setdefault(index, clip))
                    seen.append(index)
        assert set(seen) == set(range(13))
        assert len(seen) == -(-13 // world_size) * world_size
    first_epoch = dataset[0, 5]["video"]
    assert any(not torch.equal(first_epoch, dataset[epoch, 5]["video"]) for epoch in range(1, 5))


# ---- repeated augmentation ----


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_repeats_meet_in_a_batch(many_videos, world_size, num_workers):
    """Each video three times per epoch over all ranks, in one batch, each time another clip."""
    transform = TrainTransform(32, scale=(0.2, 1.0), flip=0.5, brightness=0.4)
    dataset = TrainDataset(many_videos, FrameSampler(2, 1), transform, seed=1)
    seen: list[int] = []
    for rank in range(world_size):
        loader = loader_of(
            dataset, world_size, rank, num_workers, batch_size=6, shuffle=True, seed=1, repeats=3
        )
        assert len(loader.sampler) == 3 * -(-13 // world_size)
        loader.sampler.set_epoch(4)
        for batch in loader:
            indices = batch["video_index"].tolist()
            assert indices == [i for i in indices[::3] for _ in range(3)]
            seen += indices[::3]
            for clips, index in zip(batch["video"].split(3), indices[::3], strict=True):
                # Number 0 is painted black, whatever its crop.
                assert index == 0 or len({tuple(clip.flatten().tolist()) for clip in clips}) == 3
    assert set(seen) == set(range(13))
    assert len(seen) == -(-13 // world_size) * world_size


def test_repeats_change_neither_order_nor_first_clips(many_videos):
    dataset = TrainDataset(many_videos, FrameSampler(2, 1), TrainTransform(32, brightness=0.4), seed=1)
    once, thrice = (EpochSampler(13, shuffle=True, seed=1, repeats=n) for n in (1, 3))
    assert list(thrice)[::3] == list(once)
    for epoch, index in itertools.islice(once, 4):
        clips = [dataset[epoch, index + 13 * r] for r in range(3)]
        assert [clip["video_index"] for clip in clips] == [index] * 3
        assert torch.equal(clips[0]["video"], dataset[epoch, index]["video"])


def test_repeats_of_a_broken_video_are_replaced(partly_broken):
    """Each repeat draws its own substitute."""
    dataset = TrainDataset(partly_broken, FrameSampler(2), PLAIN)
    items = [dataset[0, 0 + 4 * r] for r in range(12)]
    assert {item["video_index"] for item in items} == {1, 2, 3}
    assert all(item["error"] for item in items)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_among_repeats(many_videos, num_workers, rank):
    """After k batches of an epoch a new loader gives exactly the rest, pixels included."""
    transform = TrainTransform(32, rand_augment=RandAugment(), erase=RandomErasing(0.5))
    dataset = TrainDataset(many_videos, FrameSampler(2, 1), transform, seed=1)

    def loader() -> ResumableLoader:
        made = loader_of(dataset, 2, rank, num_workers, batch_size=4, shuffle=True, seed=1, repeats=2)
        made.sampler.set_epoch(2)
        return made

    whole = [batch["video"] for batch in loader()]
    assert [len(video) for video in whole] == [4, 4, 4, 2]
    first, second = loader(), loader()
    begun = [batch["video"] for batch in itertools.islice(first, 2)]
    second.load_state_dict(first.state_dict())
    resumed = begun + [batch["video"] for batch in second]
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


def test_workers_use_one_thread(many_videos):
    class Probe(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, key):
            return torch.get_num_threads()

    loader = torch.utils.data.DataLoader(Probe(), num_workers=1, worker_init_fn=init_worker)
    assert [int(n) for n in loader] == [1, 1]


def test_resuming_in_the_middle_of_an_epoch(many_videos):
    """After k batches of epoch e a new loader gives exactly the rest, then the next epoch."""
    dataset = TrainDataset(many_videos, FrameSampler(2, 1), PLAIN, seed=1)

    def indices(batches) -> list[list[int]]:
        return [batch["video_index"].tolist() for batch in batches]

    unbroken = loader_of(dataset, 1, 0, 0, shuffle=True)
    unbroken.sampler.set_epoch(2)
    whole = indices(unbroken)
    unbroken.sampler.set_epoch(3)
    following = indices(unbroken)
    for num_workers in (0, 2):
        first = loader_of(dataset, 1, 0, num_workers, shuffle=True)
        first.sampler.set_epoch(2)
        begun = indices(itertools.islice(first, 3))
        state = first.state_dict()
        assert state == {"epoch": 2, "batches": 3}, "prefetched batches must not count"
        second = loader_of(dataset, 1, 0, num_workers, shuffle=True)
        second.load_state_dict(state)
        second.sampler.set_epoch(2)  # as Lightning does after restoring
        assert second.state_dict() == state
        assert begun + indices(second) == whole
        assert second.state_dict() == {"epoch": 3, "batches": 0}
        second.sampler.set_epoch(3)
        assert indices(second) == following
