"""Checkpoints: atomic, plain data, no code run, clear words about files that are something else."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from dtf.errors import RunError
from dtf.lit.checkpoint import AtomicCheckpointIO
from dtf.models import create_model
from dtf.runs.checkpoint import describe, load_checkpoint


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
    with pytest.raises(ValueError, match=r"evil\.ckpt is no checkpoint .* holds something else than tensors"):
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
    with pytest.raises(ValueError, match=r"cannot rebuild 'dtf_tiny' from it: \d+ tensors are missing"):
        load_checkpoint(path).build_network()


def test_a_network_that_is_unknown_here(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    saved = content()
    saved["dtf"]["model"]["name"] = "dtf_huge"
    torch.save(saved, path)
    with pytest.raises(ValueError, match="unknown model 'dtf_huge'"):
        load_checkpoint(path).build_network()


# ---- files made to harm ------------------------------------------------------------------------------------


def rewritten(path: Path, change=lambda pickled: pickled, compression: int = zipfile.ZIP_STORED) -> None:
    """A checkpoint with another pickle in it, or compressed."""
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, bytes_ in entries.items():
            archive.writestr(name, change(bytes_) if name.endswith("data.pkl") else bytes_)


def described(**about):
    """Makes a checkpoint whose description has other entries."""

    def make(path: Path) -> None:
        saved = content()
        saved["dtf"] |= about
        torch.save(saved, path)

    return make


def nested(levels: int, width: int = 1) -> list:
    value: list = []
    for _ in range(levels):
        value = [value] * width
    return value


def no_numbers(path: Path) -> None:
    """A classifier of 40 GB in four bytes."""
    saved = content()
    saved["state_dict"]["network.backbone.fc.weight"] = torch.zeros(1).expand(10**9, 10)
    torch.save(saved, path)


def shared_numbers(path: Path) -> None:
    """Many large tensors that are one."""
    saved, shared = content(), torch.zeros(100_000)
    saved["state_dict"] |= {f"network.{i}": shared for i in range(100)}
    torch.save(saved, path)


def calls(code: bytes):
    """A pickle that calls something in place of holding a checkpoint."""
    return lambda path: rewritten(path, lambda pickled: b"\x80\x02" + code + b".")


def central_directory(path: Path) -> None:
    torch.save(content(), path)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"PK\x01\x02")
    whole[start + 4 : start + 40] = b"\xff" * 36
    path.write_bytes(whole)


def entry_twice(path: Path) -> None:
    torch.save(content(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(name for name in archive.namelist() if name.endswith("data.pkl")), b"N.")


HARMFUL = {
    "deflated": (lambda p: rewritten(p, compression=zipfile.ZIP_DEFLATED), "compressed entries"),
    "bytes that it does not hold": (calls(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R"), "something else"),
    "a tensor without storage": (calls(b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R"), "something else"),
    "a call by another opcode": (calls(b"X\x02\0\0\0osX\x06\0\0\0system\x93)R"), "something else"),
    "a pickle cut short": (lambda p: rewritten(p, lambda pickled: pickled[:100]), "damaged one"),
    "an empty pickle": (lambda p: rewritten(p, lambda pickled: b""), "damaged one"),
    "an unknown opcode": (calls(b"\xff"), "damaged one"),
    "an empty stack": (calls(b"R"), "damaged one"),
    "a memo that is not there": (calls(b"h\x07"), "damaged one"),
    "a text that is none": (calls(b"X\x02\0\0\0\xff\xff"), "damaged one"),
    "a longer text than the file": (calls(b"X\xff\xff\xff\x7fa"), "damaged one"),
    "an unknown storage": (calls(b"(X\x03\0\0\0foot" + b"Q"), "damaged one"),
    "two pickles": (entry_twice, "2 entries data.pkl"),
    "a directory of nonsense": (central_directory, "damaged one|compressed entries"),
    "an expanded tensor": (no_numbers, "without the numbers for it"),
    "a tensor many times": (shared_numbers, "weights are larger than the file"),
    "deep settings": (described(config={"a": nested(100)}), "nested more than 32 deep"),
    "settings without end": (described(config={"a": nested(20, 10)}), "more than 1000000 values"),
    "a tensor as a setting": (described(data={"clip_length": torch.zeros(1)}), "a Tensor, which is no plain"),
    "no model": (described(model=None), "model must be a dict, got NoneType"),
    "no name": (described(model={"arguments": {}}), "model must have a name and arguments"),
    "no names": (described(class_names=[1, 2]), "class_names must be a list of texts"),
    "keys that are no texts": (described(config={1: 2}), "a key that is no text: '1'"),
    "no epochs": (lambda p: torch.save(content() | {"loops": [1]}, p), "damaged description"),
    "no weights": (lambda p: torch.save(content() | {"state_dict": {"network.a": 1}}, p), "must be tensors"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_files_made_to_harm_are_one_line(tmp_path: Path, name: str) -> None:
    make, message = HARMFUL[name]
    path = tmp_path / "x.ckpt"
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3000, 3000, 3000, 3000]}, "layers=3000, far more than its tensors have"),
        ({"num_classes": 4_000_000}, "num_classes=4000000, far more than its tensors have"),
        ({"num_classes": 2000}, "2 tensors are missing, left over or of another shape"),
        ({"pretrained": True}, "must not ask for pretrained weights"),
        ({"pretrained": "/etc/passwd"}, "must not ask for pretrained weights"),
    ],
)
def test_a_network_that_the_weights_are_not(tmp_path: Path, arguments: dict, message: str) -> None:
    path = tmp_path / "x.ckpt"
    described(model={"name": "c2d_tiny", "arguments": {"num_classes": 3, "clip_length": 4} | arguments})(path)
    with pytest.raises(ValueError, match=rf"x\.ckpt: cannot rebuild 'c2d_tiny' from it: .*{message}"):
        load_checkpoint(path).build_network()


def test_lightning_goes_on_with_the_same_care(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    HARMFUL["deflated"][0](path)
    with pytest.raises(ValueError, match="compressed entries"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_wrong_number_of_names(tmp_path: Path) -> None:
    saved = content()
    saved["dtf"]["class_names"] = ["a", "b"]
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt: .* it names 2 classes, its network has 3"):
        load_checkpoint(tmp_path / "x.ckpt").build_network()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), torch.zeros(3)),
        (("format",), "x" * 100_000),
        (("model", "name"), "x" * 100_000),
        (("model", "arguments", "clip_length"), "x" * 100_000),
        (("config",), {"a": torch.zeros(3)}),
    ],
)
def test_mistyped_entries_are_one_line(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    """A line that can be read: as long as a text in the file it would fill the terminal."""
    saved = content()
    node = saved["dtf"]
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt") as error:
        load_checkpoint(tmp_path / "x.ckpt").build_network()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
