"""A page about a run that needs nothing but a browser: OUTPUT/report.html.

    python -m dtf.report DIR... [frames=true]

train.py and eval.py write it at their end; this command makes it again from what is in the folder: curves (of
all parts of a resumed run), test results, confusions, classes, right and wrong videos, temporal filters,
settings, and how to repeat the run. Everything is inside the one file. A run that is not finished
gets what there is so far.

The folder may come from anywhere: what leads out of it, is no plain data or is too large is refused in one
line, a section whose file holds other things than a run writes there is left out with a note, and no video
is read. frames=true, for a run of your own, shows frames of the videos below the data.root that it names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dtf.errors import RunError
from dtf.files import replacing
from dtf.runs.options import parse_options, run_command, yes_or_no
from dtf.runs.reading import read_run
from dtf.view.report.page import page

PAGE = "report.html"


def write_report(folder: str | os.PathLike[str], frames: bool = True) -> Path:
    """Write OUTPUT/report.html, whole or not at all.

    Args:
        folder: of a run of train.py or eval.py.
        frames: show frames of videos below the data.root that the folder names.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
        RunError: the page cannot be written.
    """
    run = read_run(Path(folder))
    path, text = run.folder / PAGE, page(run, frames)
    with replacing(path) as file:
        file.write(text)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    folders, options = parse_options(arguments, {"frames": "false"})
    if not folders:
        raise RunError("no folder of a run: python -m dtf.report outputs/DAY/TIME")
    for folder in folders:
        print(write_report(folder, yes_or_no(options, "frames")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
