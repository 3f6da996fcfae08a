"""Checkpoints: atomic, plain data, no code run, clear words about files that are something else."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from dtf.lit.checkpoint import AtomicCheckpointIO, describe, load_checkpoint
from dtf.lit.command import RunError
from dtf.models import create_model


def content(name: str = "c2d_tiny", **arguments) -> dict:
    network = create_model(name, num_classes=3, clip_length=4, **arguments)
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    about = describe(network, ["a", "b", "c"], {"clip_length": 4}, {"seed": 0})
    return {"state_dict": state, "epoch": 6, "dtf": about}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.ckpt"
    saved = content()
    AtomicCheckpointIO().save_checkpoint(saved, path)
    found = load_checkpoint(path)
    assert found.epoch == 7
    assert found.class_names == ["a", "b", "c"]
    network = found.build_network()
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, saved["state_dict"][f"network.{name}"])
    assert load_checkpoint(path, weights=False).model == found.model


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_no_code_is_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save(content() | {"bomb": _Bomb(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt holds more than plain data"):
        load_checkpoint(path)
    assert not trace.exists()
    # The bomb is live: an unguarded load sets it off.
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        assert b"system" in archive.read(name)


def test_a_write_that_fails_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), path)
    before = path.read_bytes()

    def full_disk(checkpoint, file):
        file.write(b"half a check")
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(RunError, match=r"cannot write .*last\.ckpt: No space left.* kept; free some space"):
        AtomicCheckpointIO().save_checkpoint(content(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_name_appears_only_when_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, save = tmp_path / "last.ckpt", torch.save

    def watched(checkpoint, file):
        save(checkpoint, file)
        assert not path.exists()

    monkeypatch.setattr(torch, "save", watched)
    AtomicCheckpointIO().save_checkpoint(content(), path)
    assert path.exists()


def truncated(path: Path) -> None:
    torch.save(content(), path)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "damaged one \\(0 bytes\\)"),
        (lambda p: p.write_text("hello"), "is no checkpoint"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is no checkpoint"),
        (truncated, "is no checkpoint, or a damaged one"),
        (lambda p: torch.save({"state_dict": {}}, p), "does not say which dtf network"),
        (lambda p: torch.save([1, 2], p), "does not say which dtf network"),
        (lambda p: torch.save(content() | {"dtf": {"format": 99}}, p), "checkpoint format 99"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: None, "there is no checkpoint .*x.ckpt; .*nearby: .*good.ckpt"),
    ],
)
def test_other_files(tmp_path: Path, make, message: str) -> None:
    (tmp_path / "good.ckpt").write_text("")
    path = tmp_path / "x.ckpt"
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    mixed = content("c2d_tiny")
    mixed["dtf"]["model"] = content("dtf_tiny")["dtf"]["model"]
    torch.save(mixed, path)
    with pytest.raises(ValueError, match=r"weights do not fit the network dtf_tiny.*Missing key"):
        load_checkpoint(path).build_network()


def test_a_network_that_is_unknown_here(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    saved = content()
    saved["dtf"]["model"]["name"] = "dtf_huge"
    torch.save(saved, path)
    with pytest.raises(ValueError, match="unknown model 'dtf_huge'"):
        load_checkpoint(path).build_network()
