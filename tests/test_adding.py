"""docs/adding.md, followed to the letter in a copy of the repository: its files, then its commands."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from engine import REPOSITORY, run_subprocess

from dtf.data.h264 import write_h264

PAGE = (REPOSITORY / "docs" / "adding.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.M | re.S)
SMALL = [
    *("debug=step", "trainer=cpu", "data.clip_length=4", "data.crop_px=32", "logger=none"),
    *("callbacks.dashboard=null", "data.clips_per_class={train:1,val:1,test:1}"),
]


def files() -> list[tuple[str, str]]:
    """(path, text) of the page's files: the last path in the paragraph above a block that is no command."""
    found, before = [], 0
    for block in BLOCK.finditer(PAGE):
        if block[1] != "bash":
            above = PAGE[before : block.start()].rstrip().rsplit("\n\n", 1)[-1]
            path = re.findall(r"`((?:dtf|conf|tests)/[\w/.]+)`", above)[-1]
            found.append((path, block[2]))
        before = block.end()
    return found


def commands() -> list[list[str]]:
    lines = [line for block in BLOCK.finditer(PAGE) if block[1] == "bash" for line in block[2].splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what the page adds, and videos of its toys."""
    root = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "golden")
    for name in ("dtf", "conf", "hydra_plugins", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, symlinks=True, ignore=ignore)
    for name in ("train.py", "eval.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, root)
    for path, text in files():
        (root / path).parent.mkdir(exist_ok=True)
        with (root / path).open("a") as file:
            file.write(text)
    toys = root / "data" / "toys"
    toys.mkdir(parents=True)
    (toys / "toys.names").write_text("car\nball\n")
    (toys / "toys_train.txt").write_text("car|1\nball|2\ncar|3\nball|4\n")
    (toys / "toys_test.txt").write_text("car|5\nball|6\n")
    for number in range(1, 7):
        write_h264(toys / f"toy-{number}.mp4", np.full((8, 48, 48, 3), 30 * number, np.uint8), 25)
    return root


def test_the_page_is_right_to_the_letter(copy: Path) -> None:
    lines, runs = [], []
    for number, command in enumerate(commands()):
        if command[0] == "train.py":
            runs.append(copy / "outputs" / str(number))
            small = [a for a in SMALL if "clips_per_class" not in a] if "data=toys" in command else SMALL
            command += [*small, f"output={runs[-1]}"]
        lines.append(command)
    done = run_subprocess(str(Path(__file__)), json.dumps(lines), cwd=copy, PYTHONPATH=str(copy))
    assert done.code == 0, done.out + done.err
    assert "pair_mean\n  torch      live" in done.out
    assert "1 passed" in done.out
    assert "mean distance" in done.out
    assert [run.name for run in runs if not (run / "results.json").is_file()] == []
    assert len(runs) == 4


def _run(lines: list[list[str]]) -> None:
    """Each command in this process, one after the other: what takes long is imported once."""
    sys.path[0] = str(Path.cwd())
    import dtf

    assert Path(dtf.__file__).is_relative_to(Path.cwd()), dtf.__file__
    for line in lines:
        print("$", shlex.join(line), flush=True)
        try:
            if line[0] == "-m":
                sys.argv = line[1:]
                runpy.run_module(line[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = line
                runpy.run_path(line[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                sys.exit(f"{shlex.join(line)}: {end.code}")


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
