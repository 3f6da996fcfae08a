"""timm without what it imports in passing: wandb, where that is installed: a second at each start.

timm's own training script logs there; none of the networks does.
"""

from __future__ import annotations

import sys

if not {"timm", "wandb"} & set(sys.modules):
    sys.modules["wandb"] = None  # type: ignore[assignment]  # importing it then fails as if it were missing
    try:
        import timm  # noqa: F401
    finally:
        del sys.modules["wandb"]
