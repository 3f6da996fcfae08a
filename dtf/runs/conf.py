"""The settings that are shipped, and overrides as texts of a command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CONF = (Path(__file__).parents[1] / "programs" / "conf").resolve()
"""The settings that are shipped."""


def is_option(group: str, name: str) -> bool:
    """Whether GROUP=NAME is shipped: as a file, or as a registered network of which such a file knows."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    return name in files or (group == "model" and network_settings(CONF, name) is not None)


def network_settings(conf: Path, name: str) -> dict[str, Any] | None:
    """The settings that stand for a network's registered name; None for one that no file knows."""
    for path in (conf / "model").glob("*.yaml"):
        found = re.search(r"^name: (\w+)\$\{\.(\w+)\}", path.read_text("utf-8"), flags=re.M)
        if found and re.fullmatch(re.escape(found[1]) + r"\w+", name):
            size = name.removeprefix(found[1])
            return {"defaults": [path.stem, "_self_"], found[2]: int(size) if size.isdecimal() else size}
    return None


def with_override(arguments: list[str], override: str) -> list[str]:
    """Add an override behind the others: argparse wants them in one piece, whatever flag comes last."""
    places = [i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")]
    end = 1 + places[-1] if places else len(arguments)
    return [*arguments[:end], override, *arguments[end:]]


def quoted(text: object) -> str:
    """A text as Hydra's command line takes it."""
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
