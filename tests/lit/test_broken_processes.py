"""The list of broken training videos when two processes (gloo) each meet some of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import classifier
from test_engine import SGD, Data, fit, join, tiny
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, DistributedSampler

from dtf.lit.callbacks import BrokenVideos

pytestmark = pytest.mark.slow  # starts processes that die

# The first process reads the clips with even numbers, the second those with odd ones.
EVEN, ODD = (2,), (5, 7, 9)


class SplitData(Data):
    def train_dataloader(self) -> DataLoader:
        sampler = DistributedSampler(self.clips, shuffle=False)
        return DataLoader(self.clips, batch_size=3, sampler=sampler, collate_fn=join)


def fit_on_two(watch: BrokenVideos) -> None:
    fit(
        classifier(tiny(), 2, SGD),
        watch,
        data=SplitData(EVEN + ODD),
        strategy="ddp_spawn",
        devices=2,
        max_epochs=1,
        use_distributed_sampler=False,
    )


def test_the_list_of_all_processes_is_kept(tmp_path: Path) -> None:
    fit_on_two(BrokenVideos(0.5, tmp_path))
    kept = (tmp_path / "broken_videos.txt").read_text().splitlines()
    assert kept == [f"{i}.mp4: broken" for i in EVEN + ODD], "its own first, then those of the other process"


def test_the_limit_counts_all_processes(tmp_path: Path) -> None:
    """At most three of twelve are met by one process, which 0.3 allows; the four of both are too many."""
    with pytest.raises(ProcessRaisedException, match="4 of 12 training videos are broken") as error:
        fit_on_two(BrokenVideos(0.3, tmp_path))
    for i in EVEN + ODD:
        assert f"{i}.mp4: broken" in str(error.value)
