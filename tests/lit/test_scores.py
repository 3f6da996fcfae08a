"""Per-video scores: views averaged, repeats dropped, ranks put together, broken videos counted."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from dtf.errors import RunError
from dtf.lit import scores as module
from dtf.lit.scores import VideoScores
from dtf.lit.tasks.classification import Evaluation, confused_pairs, results


def clips(num_videos: int, num_views: int, num_classes: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """All views of some videos, as a batch would have them."""
    generator = torch.Generator().manual_seed(seed)
    size = num_videos * num_views
    return {
        "scores": torch.randn(size, num_classes, generator=generator).softmax(dim=1),
        "label": (torch.arange(num_videos) % num_classes).repeat_interleave(num_views),
        "video_index": torch.arange(num_videos).repeat_interleave(num_views),
        "view_index": torch.arange(num_views).repeat(num_videos),
    }


def collector() -> VideoScores:
    return VideoScores(Evaluation)


def add(
    scores: VideoScores, data: dict[str, torch.Tensor], rows: list[int], errors: dict[int, str] | None = None
):
    picked = {name: tensor[rows] for name, tensor in data.items()}
    texts = [(errors or {}).get(i, "") for i in picked["video_index"].tolist()]
    scores.add(**picked, error=texts)


def test_views_are_averaged_by_hand() -> None:
    scores = collector()
    scores.add(
        torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]),
        torch.tensor([0, 0, 0]),
        torch.tensor([7, 7, 3]),
        torch.tensor([0, 1, 0]),
        ["", "", ""],
    )
    found = scores.compute()
    assert found.video_index.tolist() == [3, 7]
    assert found.num_views.tolist() == [1, 2]
    np.testing.assert_allclose(found.scores, [[0.8, 0.2], [0.35, 0.65]], rtol=1e-6)
    assert found.prediction.tolist() == [0, 1]
    assert found.top1 == 0.5
    assert found.top5 == 1.0
    assert found.loss == pytest.approx(-(np.log(0.8) + np.log(0.35)) / 2, rel=1e-6)
    assert found.confusion.tolist() == [[1, 1], [0, 0]]


def test_repeats_and_order_change_nothing() -> None:
    data = clips(6, 3)
    once, mixed = collector(), collector()
    add(once, data, list(range(18)))
    for row in [17, 3, 3, *range(17, -1, -1), 0, 5, 5]:
        add(mixed, data, [row])
    a, b = once.compute(), mixed.compute()
    assert np.array_equal(a.scores, b.scores)
    assert b.num_views.tolist() == [3] * 6


@pytest.mark.parametrize(
    "shares",
    [
        # Padding: video 0 again at the end of the second process.
        ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 0, 1]),
        # The views of a video on two processes, one of them on both.
        ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8, 9, 10, 11]),
        # A process without any video of its own.
        (list(range(12)), [0, 1]),
        (list(range(12)), []),
    ],
)
def test_processes_together_equal_one(monkeypatch: pytest.MonkeyPatch, shares) -> None:
    data = clips(6, 2)
    alone = collector()
    errors = {2: "two: broken"}
    add(alone, data, list(range(12)), errors)
    expected = alone.compute()

    # Two processes are two threads that meet wherever the code gathers.
    barrier, place = threading.Barrier(2, timeout=20), threading.local()
    table: list = [None, None]

    def gather(value):
        table[place.rank] = value
        barrier.wait()
        values = list(table)
        barrier.wait()
        return values

    monkeypatch.setattr(module, "_all_gather", gather)
    monkeypatch.setattr(module, "_rank", lambda: place.rank)
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    found: list = [None, None]

    def process(rank: int) -> None:
        place.rank = rank
        scores = collector()
        if shares[rank]:
            add(scores, data, shares[rank], errors)
        found[rank] = scores.compute()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        assert result.video_index.tolist() == list(range(6))
        assert result.num_views.tolist() == [2] * 6
        assert result.errors == errors
        np.testing.assert_allclose(result.scores, expected.scores, rtol=0, atol=1e-15)
        assert result.top1 == expected.top1


def test_a_broken_video_is_wrong_and_named() -> None:
    data = clips(4, 1)
    # Perfect scores, so that only the broken video can be wrong.
    data["scores"] = torch.eye(4)
    scores = collector()
    add(scores, data, [0, 1, 2, 3], {2: "c.mp4: is empty"})
    found = scores.compute()
    assert found.top1 == 0.75
    assert found.top5 == 0.75
    assert found.prediction.tolist() == [0, 1, -1, 3]
    assert found.confusion.sum() == 3
    assert np.isfinite(found.loss)
    names, paths = list("abcd"), [f"{n}.mp4" for n in "abcd"]
    about = results(found, names, paths)
    assert about["broken_videos"] == [{"video": "c.mp4", "error": "c.mp4: is empty"}]
    assert about["per_class"]["c"] == {"videos": 1, "right": 0, "accuracy": 0.0}

    found.check("test", 0.25)
    with pytest.raises(RunError, match=r"test: 1 of 4 videos are broken.*c\.mp4: is empty"):
        found.check("test", 0.24)


def test_all_videos_broken() -> None:
    data = clips(2, 2)
    scores = collector()
    add(scores, data, [0, 1, 2, 3], {0: "x", 1: "y"})
    found = scores.compute()
    assert found.top1 == 0.0
    with pytest.raises(RunError, match="2 of 2"):
        found.check("val", 0.5)


def test_scores_that_are_no_numbers_are_no_result() -> None:
    """Ranked, NaN would be class 0: one video in four right."""
    data = clips(4, 1)
    data["scores"][2] = torch.nan
    scores = collector()
    add(scores, data, list(range(4)), errors={1: "b.mp4: empty"})
    with pytest.raises(RunError, match=r"test: the network's scores of 1 of 4 videos are not finite"):
        scores.compute().check("test", 1.0)
    # A video that cannot be read has no scores, which is another matter.
    broken = collector()
    add(broken, clips(4, 1), list(range(4)), errors={2: "c.mp4: empty"})
    broken.compute().check("test", 1.0)


def test_no_videos() -> None:
    with pytest.raises(RunError, match="no videos"):
        collector().compute()


def test_reset_forgets() -> None:
    scores = collector()
    add(scores, clips(3, 1), [0, 1, 2], {1: "broken"})
    scores.reset()
    add(scores, clips(3, 1), [0])
    found = scores.compute()
    assert found.video_index.tolist() == [0]
    assert found.errors == {}


def test_confused_pairs_come_by_size() -> None:
    matrix = np.array([[9, 2, 0], [5, 1, 0], [0, 0, 7]])
    assert confused_pairs(matrix) == [(1, 0, 5), (0, 1, 2)]
