"""Commands are named as they were started, and end without a word where nobody reads what they print."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import pytest
from engine import REPOSITORY, run_subprocess

from dtf.text import as_started, quiet_on_closed_pipe

SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]


def main(script: str) -> Callable[[], int | None]:
    module, _, name = SCRIPTS[script].partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_commands_as_they_were_started(script: str, monkeypatch, capsys) -> None:
    for typed in (f"/usr/bin/{script}", "train.py"):
        monkeypatch.setattr(sys, "argv", [typed, "--help"])
        with suppress(SystemExit):  # argparse's
            assert not main(script)()
        text = capsys.readouterr().out
        console = typed.endswith(script)
        assert (script in text) == console
        assert ("python " in text) == (not console)


def test_each_console_command_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dtf-predict"])
    for script, place in SCRIPTS.items():
        module = place.partition(":")[0]
        program = ["train.py", "eval.py"] if "programs" in module else []
        typed = next((f"python {p}" for p in program if p[:-3] == script[4:]), f"python -m {module}")
        assert as_started(f"see {typed} DIR") == f"see {script} DIR"
    for other in ("python -m dtf.ops", "python -m dtf.predicting", "python train.pyc"):
        assert as_started(other) == other


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_closed_pipe_is_no_error(script: str, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    end, start = os.pipe()
    os.close(end)
    with open(start, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as ended:
            main(script)()
    assert ended.value.code == 141
    assert capfd.readouterr().err == ""


def test_other_pipes_are_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    end, start = os.pipe()
    with open(start, "w") as output, open(end):
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError), quiet_on_closed_pipe():
            raise BrokenPipeError("of a worker")


def test_nothing_is_said_at_the_end_of_the_process() -> None:
    """Python writes what is left in its buffer when it ends."""
    script = """if True:
        import subprocess, sys
        command = [sys.executable, "-m", "dtf.explain", "--help"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.close()
        sys.exit(process.wait())
    """
    done = run_subprocess("-c", script)
    assert (done.code, done.err) == (141, "")
