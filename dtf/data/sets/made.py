"""Data sets that are made here rather than downloaded: their folder appears whole, with a manifest in it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def make_once(root: Path, name: str, manifest: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Make a data folder unless it is there.

    The files appear all at once (a folder beside ROOT is filled, then renamed), so a run that was killed
    leaves nothing that looks finished. A ROOT that already holds the same set is left as it is.

    Args:
        root: the folder to make.
        name: of the data set; its manifest is ROOT/NAME.json.
        manifest: what the files were made with.
        fill: writes the files into the folder that it is given.

    Raises:
        ValueError: `root` exists and is not this set: other settings, or no such data at all.
    """
    if root.exists():
        _check(root, name, manifest)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        fill(partial)
        (partial / f"{name}.json").write_text(json.dumps(manifest, indent=2) + "\n")
        partial.chmod(0o755)
        try:
            partial.rename(root)
        except OSError:
            # Another process finished first: its files are these files, if its settings are.
            if not root.exists():
                raise
            _check(root, name, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(root: Path, name: str, manifest: Mapping[str, Any]) -> None:
    path = root / f"{name}.json"
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != manifest:
        what = f"the {name} set with other settings, {json.dumps(found)}" if found else f"no {name} set"
        raise ValueError(
            f"{root} holds {what}; wanted: {json.dumps(manifest)}. "
            "Delete that folder or set data.root to another one."
        )
