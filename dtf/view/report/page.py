"""The page about a run: its sections in their order, as HTML that needs nothing but a browser."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from dtf.files import at
from dtf.text import printable_lines
from dtf.view.report import sections
from dtf.view.report.blocks import Block
from dtf.view.report.curves import curves
from dtf.view.report.videos import videos

if TYPE_CHECKING:
    from dtf.runs.reading import Run

log = logging.getLogger(__name__)


def page(run: Run, frames: bool = True) -> str:
    """The whole page as HTML, nothing of it elsewhere."""
    parts: list[tuple[str, Callable[[Run], list[Block]]]] = [
        ("Result", sections.result),
        ("Details", sections.details),
        ("Curves", curves),
        ("Confusions", sections.confusions),
        ("Classes", sections.classes),
        ("Videos", functools.partial(videos, frames=frames)),
        ("Temporal filters", sections.filters),
        ("Videos that could not be read", sections.broken),
        ("Parameters", sections.parameters),
        ("How to repeat it", sections.repeat),
    ]
    shown = []
    for name, build in parts:
        try:
            blocks = build(run)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # The files may be anyone's: one with other types than ours costs its section, not the page.
            reason = f"{type(error).__name__}: {error}"[:300]
            log.warning("%s: the section %s is left out: %s", run.folder, name, reason)
            blocks = [
                {"note": f"Left out: the run's files hold something else than a run writes ({reason})."}
            ]
        if blocks:
            shown.append({"name": name, "anchor": name.lower().replace(" ", "-"), "blocks": blocks})
    return _template().render(title=_title(run), sections=shown)


@functools.cache
def _template() -> Any:
    """The page's template. All that it shows is escaped, and made printable, whatever it is."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable_lines(str(value)),
    )
    return environment.get_template("report.html")


def _title(run: Run) -> str:
    network = run.about.get("network") or run.results.get("network") or at(run.config, "model", "name")
    data = at(run.config, "data", "name")
    return " on ".join(str(part) for part in (network, data) if part) or run.folder.name
