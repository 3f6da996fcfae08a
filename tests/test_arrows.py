"""Imports point one way, without circles: read from the files themselves, those within functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dtf"

# What each part may import beside itself and the modules at the bottom. In short: ops <- layers <- models <-
# lit; data <- lit; runs and view know none of lit.
BOTTOM = {"dtf", "dtf.errors", "dtf.files", "dtf.text", "dtf.values"}
MAY = {
    "ops": set(),
    "layers": {"ops"},
    "models": {"layers", "ops"},
    "data": set(),
    "runs": {"models", "data"},
    "apply": {"runs", "data", "models", "layers", "ops"},
    "view": {"apply", "data", "layers"},
    "lit": {"runs", "view", "apply", "models", "layers", "ops", "data"},
}
COMMANDS = {"programs"}  # train and eval, as the wheel has them; with the modules beside the folders


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["dtf", *path.relative_to(PACKAGE).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Modules of this package that a module imports, wherever in its text; not those for types alone."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    yield whole
                elif node.module in MODULES:
                    yield node.module


EDGES = {name: sorted(set(imported(name)) - {name}) for name in MODULES}


def part(name: str) -> str:
    """ "models" for dtf.models.weights.file; "" for commands and what stands at the bottom."""
    pieces = name.split(".")
    folder = pieces[1] if len(pieces) > 1 and (PACKAGE / pieces[1]).is_dir() else ""
    return "" if folder in COMMANDS else folder


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_down(name: str) -> None:
    if name in BOTTOM:
        wrong = [other for other in EDGES[name] if other not in BOTTOM]
    elif part(name):
        allowed = MAY[part(name)] | {part(name)}
        wrong = [other for other in EDGES[name] if other not in BOTTOM and part(other) not in allowed]
    else:
        wrong = []  # a command uses what it needs
    assert not wrong, f"{name} may not import {', '.join(wrong)}"


def test_there_is_no_circle() -> None:
    """Packages' own files count too, but not that every module of a package is behind its __init__."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        state[name] = 1
        path.append(name)
        for other in EDGES[name]:
            assert state.get(other) != 1, " -> ".join([*path[path.index(other) :], other])
            if other not in state:
                visit(other)
        path.pop()
        state[name] = 2

    for name in MODULES:
        if name not in state:
            visit(name)


def test_every_part_is_known() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(MAY) | COMMANDS
