"""What a run's folder may say when it is resumed: values of known settings, nothing that runs code."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate

from dtf.errors import RunError
from dtf.files import read_json, read_yaml
from dtf.runs import resume
from dtf.runs.folder import refuse_training


def run_with(folder: Path, *entries: str) -> Path:
    """A run's folder that was started with these overrides."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(entries)))
    return folder


def test_resume_takes_the_runs_own_overrides(tmp_path) -> None:
    run_with(tmp_path / "a b'c", "model=c2d_tiny", "output=elsewhere")
    found = resume.expand([f"resume={tmp_path}/a b'c", "trainer.max_epochs=9"])
    assert [found[0], found[2]] == ["model=c2d_tiny", "trainer.max_epochs=9"]
    (output,) = OverridesParser.create().parse_overrides([found[1]])
    assert str(output.value()) == f"{tmp_path}/a b'c"
    assert resume.expand(["seed=1"]) == ["seed=1"]
    with pytest.raises(ValueError, match="its own command"):
        resume.expand([f"resume={tmp_path}", "-m", "seed=1,2"])


def test_changes_leave_out_where_a_run_happens() -> None:
    old = {"output": "a", "seed": 0, "data": {"root": "/a", "clip_length": 8}, "logger": {"csv": {}}}
    new = {"output": "b", "seed": 1, "data": {"root": "/b", "clip_length": 8, "flip": 1}, "logger": {}}
    assert resume.changes(old, new) == ["data.flip: absent -> 1", "seed: 0 -> 1"]


HUB = "+callbacks.x={_target_:torch.hub.load,repo_or_dir:%s,source:local,model:x}"


def test_a_foreign_folder_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, hub = tmp_path / "marker", tmp_path / "run" / "hub"
    entry = HUB % hub
    run_with(tmp_path / "run", "model=c2d_tiny", entry)
    hub.mkdir()
    (hub / "hubconf.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef x():\n    pass\n")
    given = [f"resume={tmp_path}/run", "seed=1"]
    with pytest.raises(ValueError, match="known settings only") as error:
        resume.expand(given)
    assert entry in str(error.value)
    assert f"python train.py resume={tmp_path}/run trust=true seed=1" in str(error.value)
    assert not marker.exists()

    trusted = resume.expand([*given, "trust=true"])
    assert trusted == ["model=c2d_tiny", entry, f"output='{tmp_path}/run'", "seed=1"]
    warning = capsys.readouterr().err
    assert warning.startswith("warning: taken on trust")
    assert entry in warning
    # The entry is live: built, it does what it says.
    instantiate(OverridesParser.create().parse_override(entry).value())
    assert marker.exists()


@pytest.mark.parametrize(
    "entry",
    [
        *("+seed=1", "++seed=1", "~callbacks.lr", "model@x=c2d_tiny", "seed=1,2", "seed=choice(1,2)"),
        *("hydra.run.dir=/x", "hydra/launcher=basic", "data._target_=os.system", "callbacks.lr._args_=[1]"),
        *("data.augment.erase={_target_:os.system}", "data.augment.erase={a:{b:[{_target_:os.system}]}}"),
        *("seed=${oc.env:HOME}", "optim.lr='${oc.env:HOME}'", "data.mean=[1,'${x:y}']", "$x=1"),
        *("model=mine", "model=/etc/passwd", "data=null_", "experiment=[k400]", "nothing/x=y"),
        *("data.class_names=/etc/passwd", "data.splits.val=../other", "model.pretrained='~/x.pth'"),
        *("callbacks.best.dirpath=/tmp", "data.splits={val:/etc}", "data.root=/no/such/folder"),
        *("data.root='${oc.env:HOME}'", "data.root=[/tmp]"),
    ],
)
def test_values_of_known_settings_only(tmp_path: Path, entry: str) -> None:
    folder = run_with(tmp_path / "run", "model=dtf_tiny", entry)
    with pytest.raises(ValueError, match="known settings only") as error:
        resume.expand([f"resume={folder}"])
    assert entry in str(error.value)
    assert "\n" not in str(error.value)
    assert entry in resume.expand([f"resume={folder}", "trust=true"])


def test_what_is_typed_again_is_the_users_own(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", "+trainer.benchmark=true", "data.root=/no/such/folder", "seed=1")
    typed = ["+trainer.benchmark=true", f"data.root={tmp_path}"]
    assert resume.expand([f"resume={folder}", *typed]) == ["seed=1", f"output='{folder}'", *typed]
    with pytest.raises(ValueError, match=r"trust must be true or false, got 'yes'"):
        resume.expand([f"resume={folder}", "trust=yes"])


def test_usual_settings_are_taken(tmp_path: Path) -> None:
    entries = [
        *("model=dtf_tiny", "experiment=null", "model.widths=[8,8,16,16]", f"data.root='{tmp_path}'"),
        *("data.clips_per_class={train:2,val:1}", "optim.lr_scale={backbone.head:10}", "optim.lr=1e-3"),
        *("data.augment.erase={probability:0.25,fill:noise}", "ema=null", "model.pretrained=true"),
    ]
    folder = run_with(tmp_path / "run", *entries)
    assert resume.expand([f"resume={folder}"])[:-1] == entries


@pytest.mark.parametrize("entry", ["--config-dir=/tmp", "-m", "--cfg", "optim.lr", "=", "a b"])
def test_no_entry_reaches_the_parser_of_flags(tmp_path: Path, entry: str) -> None:
    folder = run_with(tmp_path / "run", "seed=1", entry)
    for trust in ([], ["trust=true"]):
        with pytest.raises(ValueError, match="is no setting KEY=VALUE"):
            resume.expand([f"resume={folder}", *trust])


def test_files_that_lead_elsewhere(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", "seed=1")
    (folder / "inside").symlink_to("csv")
    assert resume.expand([f"resume={folder}"])[0] == "seed=1"
    (folder / "train.log").symlink_to(tmp_path / "bashrc")
    os.mkfifo(folder / ".lock")
    with pytest.raises(ValueError, match=r"neither a file nor") as error:
        resume.expand([f"resume={folder}"])
    assert "train.log is a link that leads out of the folder" in str(error.value)


@pytest.mark.parametrize(
    "text", ["{}", "- {a: 1}", "- 1", "'", "[" * 5000, "- &a [x]\n- *a\n", "- !!python/name:os.system x\n"]
)
def test_damaged_overrides_are_one_line(tmp_path: Path, text: str) -> None:
    folder = run_with(tmp_path / "run")
    (folder / ".hydra" / "overrides.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"overrides\.yaml is damaged") as error:
        resume.expand([f"resume={folder}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1', "delimiter"),
        ("[1]", "no table"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": Infinity}', "holds Infinity"),
        ('{"a": 1e999}', "holds 1e999"),
        (f'{{"a": {"9" * 99}}}', "99 digits"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_damaged_json_is_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"results\.json is damaged: .*{reason}") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    for name, read in (("x.json", read_json), ("x.yaml", read_yaml)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 27)
        with pytest.raises(ValueError, match=r"is damaged: it has more than \d+ MiB"):
            read(tmp_path / name)


def test_settings_of_any_length_are_shown_in_one_line(tmp_path: Path) -> None:
    stored: Any = SimpleNamespace(
        path=tmp_path / "last.ckpt",
        model={"name": "a", "arguments": {"x" * 10_000: "y" * 10_000}},
        config={"data": {"name": ["z" * 10_000]}},
    )
    description = {"model": {"name": "a", "arguments": {}}, "config": {"data": {"name": "motion"}}}
    with pytest.raises(RunError) as error:
        resume.check_same_run(stored, description)
    assert len(str(error.value)) < 1000
    assert "data.name: ['zzz" in str(error.value)
    assert "... -> motion" in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "giant"])
def test_what_decides_on_a_folder_is_plain_data(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        refuse_training(tmp_path)
