"""The wheel: what it holds, and that its commands work in a folder that is not the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from engine import REPOSITORY

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# As the script that pip writes for an entry point.
SCRIPT = "import sys; sys.argv[0] = 'bin/dtf-train'; from dtf.programs.train import main; sys.exit(main())"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel holds, unpacked; built without a network from a copy of the repository's files."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than pyproject.toml asks for")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("dtf", "hydra_plugins", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py", "eval.py"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-c", BUILD, str(target)], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    [wheel] = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return target / "site"


def files(folder: Path) -> set[str]:
    found = (p for ending in ("py", "cu", "cuh", "yaml", "html") for p in folder.rglob(f"*.{ending}"))
    return {str(path.relative_to(folder)) for path in found}


def test_the_wheel_holds_the_package_its_programs_and_all_settings(package: Path) -> None:
    assert files(package / "hydra_plugins") == files(REPOSITORY / "hydra_plugins")
    assert files(package / "dtf/programs/conf") == files(REPOSITORY / "conf")
    assert files(package / "dtf") >= files(REPOSITORY / "dtf")
    for name in ("train.py", "eval.py"):
        assert (package / "dtf/programs" / name).read_bytes() == (REPOSITORY / name).read_bytes()
    # Nothing of tests, benchmarks or documents, and no folder that other packages have.
    assert {p.name for p in package.iterdir() if not p.name.endswith(".dist-info")} == {
        "dtf",
        "hydra_plugins",
    }


def test_every_command_is_there() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    for name, value in scripts.items():
        assert callable(EntryPoint(name, value, "console_scripts").load())
    documented = set(re.findall(r"python -m dtf\.(?:data\.)?(\w+)", (REPOSITORY / "README.md").read_text()))
    assert {f"dtf-{name}" for name in documented - {"ops"}} <= set(scripts)


def test_a_command_finds_its_settings_from_another_folder(package: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "model=c2d_tiny", "optim.lrr=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: there is no setting optim.lrr; did you mean optim.lr? (dtf-train --help)\n"
    )
    assert list(tmp_path.iterdir()) == []
