"""The README's commands exist, compose and import; what it points to is there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


COMMANDS = [
    shlex.split(line, comments=True)
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("python ")
]


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 8
    assert {command[1] for command in COMMANDS} == {"train.py", "eval.py", "-m"}


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c[1].endswith(".py") and "--help" not in c], ids=" ".join
)
def test_settings_compose(command, tmp_path):
    """Hydra prints the composed settings instead of running: every key and option of the line exists."""
    arguments = [a for a in command[1:] if a != "-m"]
    if any(a.startswith("resume=") for a in arguments):
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "overrides.yaml").write_text("[seed=3]")
        arguments = [f"resume={tmp_path}" if a.startswith("resume=") else a for a in arguments]
    # One value of each swept setting.
    arguments = [re.sub(r"=([^,\[]+),.*", r"=\1", a) for a in arguments]
    if "eval.py" in arguments:
        arguments = [a for a in arguments if not a.startswith("checkpoint=")] + ["checkpoint=x"]
        # What the checkpoint would say.
        arguments += ["data=motion", "task=classification"]
    done = run([*arguments, "--cfg=job"])
    assert done.returncode == 0, done.stderr
    assert "trainer:" in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1] == "-m"], ids=" ".join)
def test_modules_answer(command):
    done = run([*command[1:3], *(["--help"] if len(command) > 3 else [])])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_example_runs():
    (example,) = blocks("python")
    ast.parse(example)
    # 224 px and ResNet-50 take seconds; the shapes in the comments are what is checked.
    check = "\nassert logits.shape == (2, 400) and features.shape == enriched.shape == (2, 64, 4, 56, 56)"
    done = run(["-c", example + check + "\nassert correlation.shape == (2, 9, 4, 56, 56)"])
    assert done.returncode == 0, done.stderr


def test_files_it_points_to_exist():
    linked = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if not x.startswith("http")]
    missing = [x for x in linked if not (ROOT / x).exists()]
    assert missing == []


def test_the_error_it_shows_is_what_is_printed():
    command, shown = re.search(r"^\$ python (.*)\n(error: .*)$", README, flags=re.M).groups()
    done = run(shlex.split(command))
    assert done.returncode == 1
    assert done.stderr.strip() == shown
