"""The runs of a sweep side by side: a table, summary.csv and summary.png.

    python -m dtf.sweep DIR

`train.py -m` ends with it. DIR is the sweep's folder, or any folder of runs: whatever differs between them
becomes a column. Everything is read from the runs' folders, so it also tells how far a sweep is that is still
running elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dtf.runs.compared import Comparison, compare, write_csv
from dtf.runs.options import parse_options, run_command
from dtf.view.compared import draw, print_table


def summarize(folder: Path) -> int:
    """Write summary.csv and summary.png into a folder of runs and print the table.

    Returns:
        How many runs failed since the sweep was last started.
    """
    found = compare(folder)
    return 0 if found is None else _show(found)


def _show(found: Comparison) -> int:
    write_csv(found.folder / "summary.csv", found)
    if any(run.is_finished for run in found.runs):
        draw(found.folder / "summary.png", found)
    print_table(found)
    return sum(run.status == "failed" and not run.earlier for run in found.runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    return run_command(__doc__ or "", _run, arguments)


def _run(arguments: Sequence[str]) -> int:
    folders, _ = parse_options(arguments, {})
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        raise ValueError(f"give one folder of runs, got {' '.join(folders) or 'nothing'}")
    found = compare(Path(folders[0]).resolve())
    if found is None:
        raise ValueError(f"{folders[0]} holds no runs (no */.hydra/overrides.yaml)")
    _show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
