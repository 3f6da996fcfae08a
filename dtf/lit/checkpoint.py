"""How Lightning writes and reads checkpoints: whole or not at all, without running any code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dtf.files import replacing
from dtf.runs.checkpoint import read_content


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a killed run leaves the last whole file.

    Lightning's own way goes through the folder for temporary files, which may be another file system: then it
    ends in a copy that can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint atomically.

        Raises:
            RunError: the folder cannot be written or the disk is full; an earlier file at `path` stays whole.
        """
        assert storage_options is None
        with replacing(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What Lightning goes on with, read as `dtf.runs.checkpoint.load_checkpoint` reads it.

        Raises:
            ValueError: the file is no checkpoint, damaged, or could run code or fill the memory.
        """
        return read_content(Path(path))
