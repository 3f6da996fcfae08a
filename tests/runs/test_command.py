"""Errors in one line and folders for several processes (what needs a run is in tests/test_train.py)."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace as Namespace

import pytest
from engine import REPOSITORY
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dtf.errors import RunError
from dtf.runs import command, composing, process, sweeping
from dtf.runs.composing import explain
from dtf.runs.conf import with_override
from dtf.runs.errors import one_line_errors
from dtf.text import nearest

CONF = REPOSITORY / "conf"


def raised(error: BaseException) -> BaseException:
    """The error as if our code had raised it... which a test is not part of."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_only_our_value_errors_are_the_users() -> None:
    assert explain(raised(ValueError("from elsewhere"))) is None
    with pytest.raises(ValueError, match="lr must") as ours:
        command_error()
    assert explain(ours.value) == str(ours.value)


def test_the_way_out_of_wandb_is_a_setting() -> None:
    import wandb

    text = explain(wandb.Error("no account")) or ""
    setting = text.rsplit(" ", 1)[-1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", overrides=["logger=wandb", setting]).logger.wandb.offline is True


def test_errors_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise RunError("class \x1b[31mred\n is wrong")
    assert capsys.readouterr().err == "error: class \\x1b[31mred is wrong\n"


def command_error() -> None:
    from dtf.lit.optim import OptimConfig

    OptimConfig(name="sgd", lr=-1)


def test_faults_of_ours_keep_their_trace(capsys: pytest.CaptureFixture[str]) -> None:
    for fault in (AssertionError("ours"), TypeError("ours"), KeyError("ours"), IndexError("ours")):
        with pytest.raises(type(fault)), one_line_errors():
            raise fault
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("too\n many"), "error: too many\n"),
        (RunError("x: 2 problems\n  first\n  sec\nond"), "error: x: 2 problems\n  first\n  sec ond\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.csv"),
            "error: x.csv: No such file or directory\n",
        ),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device\n"),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture[str], monkeypatch, error: Exception, line: str) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    assert end.value.code == 1
    assert capsys.readouterr().err == line


def test_slurm_where_there_is_none() -> None:
    text = explain(RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')) or ""
    assert text.startswith("hydra/launcher=submitit_slurm needs Slurm")


def test_output_that_is_not_utf8_degrades(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with one_line_errors():
        print("café → 数")
        sys.stdout.flush()
    assert written.getvalue() == b"caf? ? ?\n"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lr", "optim.lr"),
        ("data.lr", "optim.lr"),
        ("optim.lrr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("batchsize", "data.batch_size"),
        ("epochs", "trainer.max_epochs"),
        ("modle", "model"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("data.augmnt.flip", "data.augment.flip"),
        ("name", "model.name or data.name or optim.name"),
    ],
)
def test_the_last_part_of_a_setting_finds_it(monkeypatch: pytest.MonkeyPatch, wrong: str, right: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert composing._nearest_setting(CONF, wrong) == f"; did you mean {right}?"


def test_networks_are_options_by_their_registered_names() -> None:
    from dtf.models import list_models

    composing.name_networks(
        CONF, [f"model={','.join(list_models())}", "model=dtf_resnet,dtf_swinn", "seed=1"]
    )
    stored = ConfigStore.instance().list("model")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in list_models():
            assert f"{name}.yaml" in stored or (CONF / "model" / f"{name}.yaml").is_file()
        for name in ("dtf_resnet50", "c2d_swin_base"):
            assert compose("train", overrides=[f"model={name}"]).model.name == name
    assert not {"dtf_resnet.yaml", "dtf_swinn.yaml", "dtf_tiny.yaml"} & set(stored)


def test_full_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RunError), one_line_errors():
        raise RunError("x")


def test_nearest() -> None:
    assert nearest("lrr", ["lr", "momentum"]) == "; did you mean lr?"
    assert nearest("zzz", ["lr", "momentum"]) == ""


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a run's log shows, set up as Hydra does it."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    root.handlers[:] = [logging.StreamHandler(sys.stdout)]
    root.setLevel(logging.INFO)
    written = io.StringIO()
    yield written
    root.handlers[:], root.level = before


def test_the_log_goes_to_where_stdout_is(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    command._set_up_log(OmegaConf.create({"quiet": False}))
    # As a progress bar does.
    monkeypatch.setattr(sys, "stdout", screen)
    logging.getLogger("x").info("a line")
    assert screen.getvalue() == "a line\n"


def test_a_quiet_run_warns_only(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    command._set_up_log(OmegaConf.create({"quiet": True}))
    monkeypatch.setattr(sys, "stdout", screen)
    logging.getLogger("x").info("a line")
    logging.getLogger("x").warning("a warning")
    assert screen.getvalue() == "a warning\n"


def test_other_processes_warn_with_their_number(screen: io.StringIO, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    command._set_up_log(OmegaConf.create({"quiet": False}))
    monkeypatch.setattr(sys, "stdout", screen)
    logging.getLogger("x").info("a line")
    logging.getLogger("x").warning("a warning")
    assert re.fullmatch(r"\[[^]]+\]\[process 3\]\[x\]\[WARNING\] - a warning\n", screen.getvalue())


def test_people_count_epochs_from_one() -> None:
    from dtf.lit.callbacks import ProgressBar

    bar = ProgressBar()
    bar._trainer = Namespace(max_epochs=6)
    assert bar._get_train_description(0) == "Epoch 1/6 "
    bar._trainer = Namespace(max_epochs=-1)
    assert bar._get_train_description(0).rstrip() == "Epoch 1"


def test_processes_started_at_once_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHELASTIC_RUN_ID",
        "SLURM_NTASKS",
        "SLURM_JOB_ID",
        "RANK",
        "LOCAL_RANK",
        process.RUN_FOLDER,
    ):
        monkeypatch.delenv(name, raising=False)
    assert process.share_folder(["seed=1"]) == ["seed=1"]

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert process.share_folder(["seed=1"]) == ["seed=1", "output=outputs/abc"]
    assert process.share_folder(["output=x"]) == ["output=x"]
    monkeypatch.setenv("RANK", "1")
    assert process.share_folder(["output=x"]) == ["output=x", "hydra.output_subdir=null"]

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(RunError, match="name their common folder, output=DIR"):
        process.share_folder([])

    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert process.share_folder([])[0] == "output=outputs/slurm-42"


def test_a_sweep_names_folders_by_what_changes() -> None:
    arguments = ["-m", "optim.lr=1e-3,2e-3", "seed=1", "data.root=/a/b", "+betas=[0.9, 0.99]"]
    told = sweeping.say_what_is_swept(arguments)
    assert told[:-1] == [*arguments, "hydra.output_subdir=null"]
    assert sweeping.say_what_is_swept(["seed=1,2", "--multirun"])[-1] == "--multirun"
    fixed = OverridesParser.create().parse_overrides(told[-1:])[0].value()
    assert fixed == ["seed", "data.root", "betas"]
    # Hydra writes values in its own way: the list has lost its space.
    run = ["optim.lr=1e-3", "seed=1", "data.root=/a/b", "+betas=[0.9,0.99]"]
    assert sweeping.run_name(run, fixed) == "optim.lr-1e-3"
    assert sweeping.say_what_is_swept(["seed=1"]) == ["seed=1"]
    assert "/" not in sweeping.run_name(["data.root=/x/../y", "model='a b'"])
    long = [sweeping.run_name([f"model={'x' * 200}{i}"]) for i in range(2)]
    assert len(set(long)) == 2
    assert all(len(name) < 130 for name in long)
    assert sweeping.run_name([]) == "default"


def test_no_two_runs_of_a_sweep_share_a_folder() -> None:
    values = ["1", "-1", "1e-1", "a/b", "a-b", "'a b'", "a_b", "[1,2]", "[12]", "[1,-2]", "null", "é", "è"]
    found = [sweeping.run_name([f"+x={value}"]) for value in values]
    assert len(set(found)) == len(values)
    assert found[:3] == ["x-1", "x--1", "x-1e-1"]
    assert found[3].startswith("x-a-b-")
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in found)


def test_overrides_stay_in_one_piece() -> None:
    assert with_override(["a=1", "-m"], "b=2") == ["a=1", "b=2", "-m"]
    assert with_override(["-m", "a=1"], "b=2") == ["-m", "a=1", "b=2"]
    assert with_override(["-m"], "b=2") == ["-m", "b=2"]
