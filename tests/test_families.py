"""A family of temporal layers is named by its own files and where names are registered, nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from engine import REPOSITORY

from dtf.layers.temporal import FAMILIES
from dtf.models.families import __file__ as families_file
from dtf.models.registry import architecture, list_models

# One file each of networks; the layers (a file or a folder) and the conversion of a family have the same
# name. "dtf" is also the package's name, so it alone says nothing.
NAMES = sorted(path.stem for path in Path(families_file).parent.glob("*.py") if path.stem != "__init__")

# Beside a family's own files, these alone may name it: what it registers or offers is imported there.
REGISTERED = {
    "dtf/layers/__init__.py": "the layers that people lift out",
    "dtf/models/__init__.py": "DTFBlock is offered here as well since the first version",
    "dtf/models/families/__init__.py": "each family's networks are registered by being imported",
}


def owner(module: ModuleType, name: str) -> str:
    return getattr(getattr(module, name), "__module__", None) or ""


def words(name: str) -> Iterator[str]:
    """Patterns by which a text names a family: networks, modules, and what its layers' module offers."""
    for network in list_models():
        family = architecture(network).family
        if network.startswith(f"{name}_") and (family is None or family.name == name):
            short = network.rsplit("_", 1)[0] if network.count("_") > 1 else network
            yield short.rstrip("0123456789")
    yield rf"{name}_\*"
    yield rf"(layers|families|convert)(\.| import ){name}\b"
    if name != "dtf":
        yield rf"[\"']{name}[\"']"
    if name in FAMILIES:
        module = import_module(f"dtf.layers.{name}")
        offered = [n for n in vars(module) if owner(module, n).startswith(module.__name__)]
        yield from (f"{n}\\b" for n in offered if not n.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_nobody_else_names_a_family(name: str) -> None:
    pattern = re.compile("|".join(rf"(?<!\w){word}" for word in sorted(set(words(name)))))
    own = tuple(f"dtf/{folder}/{name}" for folder in ("layers", "models/families", "models/weights/convert"))
    own = tuple(f"{path}{end}" for path in own for end in (".py", "/"))
    files = [path for folder in ("dtf", "hydra_plugins") for path in (REPOSITORY / folder).rglob("*")]
    found = []
    for path in [*files, REPOSITORY / "train.py", REPOSITORY / "eval.py"]:
        place = path.relative_to(REPOSITORY).as_posix()
        if path.suffix not in (".py", ".html", ".cu", ".cuh") or place.startswith(own) or place in REGISTERED:
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{place}:{number}: {line.strip()}")
    assert found == []
