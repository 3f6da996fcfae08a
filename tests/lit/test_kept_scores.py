"""Scores that are kept while an evaluation goes on: nothing is lost, mixed or believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dtf.errors import RunError
from dtf.lit.kept_scores import DESCRIPTION, KeptScores
from dtf.lit.scores import VideoScores
from dtf.lit.tasks.classification import Evaluation

EVALUATION = {"format": 1, "checkpoint": "5e", "views": "3x3", "videos": 6, "classes": 5}


def sums(num: int, seed: int = 0) -> np.ndarray:
    """(num, 5) sums over nine views."""
    scores = np.random.default_rng(seed).dirichlet(np.ones(5), (num, 9))
    return scores.sum(axis=1)


def append(folder: Path, videos: list[int], batches: int = 1) -> np.ndarray:
    kept = KeptScores(folder, EVALUATION)
    kept.begin()
    values = sums(len(videos))
    for part in np.array_split(np.arange(len(videos)), batches):
        kept.append(np.array(videos)[part], values[part], np.full(len(part), 9))
    return values


def read(folder: Path) -> tuple[list[int], np.ndarray]:
    videos, values = KeptScores(folder, EVALUATION).read()
    return videos.tolist(), values


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path)[0] == []
    values = append(tmp_path, [4, 0, 2], batches=2)
    append(tmp_path, [0, 5])  # another process
    videos, found = read(tmp_path)
    assert videos == [0, 2, 4, 5]
    assert np.array_equal(found[:3], values[[1, 2, 0]])
    kept = KeptScores(tmp_path, EVALUATION)
    assert "scores of 4 of 6 videos are kept" in kept.summary()
    (tmp_path / "note").touch()
    kept.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_video_without_all_its_views_is_not_kept(tmp_path: Path) -> None:
    kept = KeptScores(tmp_path, EVALUATION)
    kept.append(np.array([1, 3]), sums(2), np.array([9, 8]))
    kept.append(np.array([2]), sums(1), np.array([8]))
    assert read(tmp_path)[0] == [1]


def test_a_file_that_is_cut_short_anywhere(tmp_path: Path) -> None:
    values = append(tmp_path, [1, 3, 5], batches=2)
    (path,) = tmp_path.glob("*.bin")
    content = path.read_bytes()
    second = len(content) - 48 - 8
    for length in range(len(content)):
        path.write_bytes(content[:length])
        videos, found = read(tmp_path)
        assert videos == ([1, 3] if length >= second else []), length
        assert np.array_equal(found, values[: len(videos)])


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    append(tmp_path, [1])
    with pytest.raises(RunError, match=r"of another evaluation: views was '3x3', is '2x1'\. Choose another"):
        KeptScores(tmp_path, EVALUATION | {"views": "2x1"})
    with pytest.raises(RunError, match=r"evaluation: interpolation was 'None', is 'bicubic'\. Choose"):
        KeptScores(tmp_path, EVALUATION | {"interpolation": "bicubic"})
    # What a process of that one still writes, after its folder was removed, is not taken either.
    (tmp_path / DESCRIPTION).unlink()
    other = KeptScores(tmp_path, EVALUATION | {"views": "9x1"})
    assert other.read()[0].tolist() == []
    for text in ("[]", "{", "[" * 50000, "x" * (1 << 17), "\ud800"):
        (tmp_path / DESCRIPTION).write_text(text, "utf-8", "surrogatepass")
        with pytest.raises(RunError, match=r"keeps scores of an unknown kind\. Choose another folder"):
            KeptScores(tmp_path, EVALUATION)


def test_files_are_not_believed(tmp_path: Path) -> None:
    append(tmp_path, [1])
    (path,) = tmp_path.glob("*.bin")
    head = path.read_bytes()[:32]

    def frames(*records: tuple[int, np.ndarray]) -> None:
        path.unlink()
        kept = KeptScores(tmp_path, EVALUATION)
        kept.append(
            np.array([v for v, _ in records]), np.array([s for _, s in records]), np.full(len(records), 9)
        )
        kept._file.rename(path)

    good = sums(1)[0]
    frames((-1, good), (6, good), (2**40, good), (0, good * np.nan), (1, -good), (2, good * 2), (3, good))
    assert read(tmp_path)[0] == [3]
    frames(*((4, good) for _ in range(12)), (5, good))
    assert read(tmp_path)[0] == [], "more than there can be"
    for number in (0, 1 << 31):
        path.write_bytes(head + number.to_bytes(4, "little") + b"x" * 100)
        assert read(tmp_path)[0] == []
    path.unlink()
    os.mkfifo(tmp_path / "1.bin")
    (tmp_path / "2.bin").symlink_to("/dev/zero")
    (tmp_path / "3.bin").mkdir()
    assert read(tmp_path)[0] == []


def test_a_folder_that_is_a_link_is_neither_written_nor_cleared(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pytorch_model.bin").write_text("of the user")
    (tmp_path / "scores").symlink_to("models")
    with pytest.raises(RunError, match=r"scores is a link; remove it, or choose another folder"):
        KeptScores(tmp_path / "scores", EVALUATION)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["pytorch_model.bin"]


def test_going_on_equals_the_unbroken_evaluation(tmp_path: Path) -> None:
    """To the bit, broken videos too."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 9, 5, generator=generator).softmax(dim=2)

    def evaluate(videos: list[int], scores_of: VideoScores) -> None:
        for video in videos:
            error = ["4.mp4: is empty" if video == 4 else ""] * 9
            index = torch.full((9,), video)
            scores_of.add(scores[video], index % 5, index, torch.arange(9), error)

    unbroken = VideoScores(Evaluation)
    evaluate(list(range(6)), unbroken)
    whole = unbroken.compute()

    first = VideoScores(Evaluation)
    first.keep = KeptScores(tmp_path, EVALUATION).append
    evaluate([5, 4, 1], first)

    videos, values = read(tmp_path)
    assert videos == [1, 5]
    second = VideoScores(Evaluation)
    second.known = (np.array(videos), np.array(videos) % 5, values, np.full(2, 9), {})
    second.reset()
    evaluate([0, 2, 3, 4], second)
    found = second.compute()
    for name in ("video_index", "label", "scores", "num_views"):
        assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=name == "scores"), name
    assert found.errors == whole.errors
    assert found.metrics == whole.metrics


def test_the_description_is_plain(tmp_path: Path) -> None:
    append(tmp_path, [1])
    assert json.loads((tmp_path / DESCRIPTION).read_text()) == EVALUATION
