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
        template = re.search(r"^name: (\S+)", path.read_text("utf-8"), flags=re.M)
        # NAME_resnet${.depth}: texts and, between them, the settings that make up the name.
        texts = re.split(r"\$\{\.(\w+)\}", template[1]) if template else []
        keys = texts[1::2]
        found = re.fullmatch(r"(\w+?)".join(map(re.escape, texts[::2])), name) if keys else None
        if found:
            values = {k: int(v) if v.isdecimal() else v for k, v in zip(keys, found.groups(), strict=True)}
            return {"defaults": [path.stem, "_self_"], **values}
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
