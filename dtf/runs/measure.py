"""The measures that runs are known by: in results.json and about.json each task tells its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dtf.files import read_yaml
from dtf.runs.conf import CONF

_MOST = 50  # measures of a task


@dataclass(frozen=True)
class Measure:
    """A number that says how good a result is.

    Attributes:
        name: in results.json, and after "val/", "test/" or "train/" in logs.
        title: for people.
        mode: "max" where more of it is better, "min" where less is.
        share: whether it lies in 0..1 and is shown in percent.
    """

    name: str
    title: str
    mode: Literal["max", "min"] = "max"
    share: bool = False

    def format(self, value: float, digits: int = 2) -> str:
        """A value for people; `digits` after the point of a percentage."""
        return f"{value:.{digits}%}" if self.share else f"{value:.4g}"


def measures(description: Any) -> list[Measure]:
    """The measures of a run, its headline first.

    Args:
        description: the entry "task" of results.json or about.json. None: written before there were tasks,
            when all was classification.

    Raises:
        ValueError: it is something else than a run writes.
    """
    if description is None:
        return measures(_of_old_files())
    entries = description.get("measures") if isinstance(description, Mapping) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST:
        raise ValueError("its task tells no measures")
    found = []
    for entry in entries:
        try:
            measure = Measure(**entry)
        except TypeError:
            raise ValueError(f"its task tells a measure that is none: {str(entry)[:80]}") from None
        texts = isinstance(measure.name, str) and isinstance(measure.title, str)
        if not texts or measure.mode not in ("max", "min") or not isinstance(measure.share, bool):
            raise ValueError(f"its task tells a measure that is none: {str(entry)[:80]}")
        found.append(measure)
    return found


@functools.cache
def _of_old_files() -> dict[str, Any]:
    # Late: nothing else here needs Hydra, and what is said here imports nothing of a task.
    from hydra.utils import get_class

    return get_class(read_yaml(CONF / "task" / "classification.yaml")["_target_"]).description()  # type: ignore[attr-defined]
