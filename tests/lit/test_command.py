"""Errors in one line and folders for several processes (what needs a run is in tests/test_train.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dtf.lit import command
from dtf.lit.command import RunError, explain, nearest, one_line_errors


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
    from hydra import compose, initialize_config_dir

    text = explain(wandb.Error("no account")) or ""
    setting = text.rsplit(" ", 1)[-1]
    conf = Path(command.__file__).parents[2] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
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
        (RunError("too\n  many"), "error: too many\n"),
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


def test_full_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RunError), one_line_errors():
        raise RunError("x")


def test_nearest() -> None:
    assert nearest("lrr", ["lr", "momentum"]) == "; did you mean lr?"
    assert nearest("zzz", ["lr", "momentum"]) == ""


def test_processes_started_at_once_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHELASTIC_RUN_ID",
        "SLURM_NTASKS",
        "SLURM_JOB_ID",
        "RANK",
        "LOCAL_RANK",
        command.RUN_FOLDER,
    ):
        monkeypatch.delenv(name, raising=False)
    assert command._share_folder(["seed=1"]) == ["seed=1"]

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert command._share_folder(["seed=1"]) == ["seed=1", "output=outputs/abc"]
    assert command._share_folder(["output=x"]) == ["output=x"]
    monkeypatch.setenv("RANK", "1")
    assert command._share_folder(["output=x"]) == ["output=x", "hydra.output_subdir=null"]

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(RunError, match="name their common folder, output=DIR"):
        command._share_folder([])

    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert command._share_folder([])[0] == "output=outputs/slurm-42"


def test_a_sweep_names_folders_by_what_changes() -> None:
    arguments = ["-m", "optim.lr=1e-3,2e-3", "seed=1", "data.root=/a/b", "+betas=[0.9, 0.99]"]
    told = command._say_what_is_swept(arguments)
    assert told[:-1] == arguments
    assert command._say_what_is_swept(["seed=1,2", "--multirun"])[-1] == "--multirun"
    fixed = OverridesParser.create().parse_overrides(told[-1:])[0].value()
    assert fixed == ["seed", "data.root", "betas"]
    # Hydra writes values in its own way: the list has lost its space.
    run = ["optim.lr=1e-3", "seed=1", "data.root=/a/b", "+betas=[0.9,0.99]"]
    assert command._run_name(run, fixed) == "optim.lr-1e-3"
    assert command._say_what_is_swept(["seed=1"]) == ["seed=1"]
    assert "/" not in command._run_name(["data.root=/x/../y", "model='a b'"])
    long = [command._run_name([f"model={'x' * 200}{i}"]) for i in range(2)]
    assert len(set(long)) == 2
    assert all(len(name) < 130 for name in long)
    assert command._run_name([]) == "default"


def test_no_two_runs_of_a_sweep_share_a_folder() -> None:
    values = ["1", "-1", "1e-1", "a/b", "a-b", "'a b'", "a_b", "[1,2]", "[12]", "[1,-2]", "null", "é", "è"]
    found = [command._run_name([f"+x={value}"]) for value in values]
    assert len(set(found)) == len(values)
    assert found[:3] == ["x-1", "x--1", "x-1e-1"]
    assert found[3].startswith("x-a-b-")
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in found)


def test_overrides_stay_in_one_piece() -> None:
    assert command.with_override(["a=1", "-m"], "b=2") == ["a=1", "b=2", "-m"]
    assert command.with_override(["-m", "a=1"], "b=2") == ["-m", "a=1", "b=2"]
    assert command.with_override(["-m"], "b=2") == ["-m", "b=2"]
