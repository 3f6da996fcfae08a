"""Networks of published architectures, small enough for a test."""

from __future__ import annotations

VIT = {"image_size": 32, "patch_size": 8, "embed_dim": 16, "blocks": 2, "num_heads": 2}
TADAFORMER = VIT | {"head_dim": 2}
