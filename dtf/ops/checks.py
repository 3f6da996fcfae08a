"""Argument checks shared by the operators. Letters: B clips, C channels, T frames, H x W pixels."""

from __future__ import annotations

import torch

from dtf.ops.dispatch import FLOATING


def check_positive(owner: str, **values: int) -> None:
    """Raises ``ValueError`` unless every value is 1, 2, 3, ...; ``owner`` is an operator or a layer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: {name} must be a positive integer, got {value!r}")


def check_choice(owner: str, allowed: tuple[str, ...], **values: str) -> None:
    """Raises ``ValueError`` unless every value is one of those allowed."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{owner}: {name} must be {' or '.join(allowed)}, got {value!r}")


def check_window(operator: str, kernel_size: int, dilation: int) -> None:
    """Raises ``ValueError`` unless the window has a centre (odd side) and the dilation is positive."""
    check_positive(operator, kernel_size=kernel_size, dilation=dilation)
    if kernel_size % 2 == 0:
        raise ValueError(
            f"{operator}: kernel_size must be odd, so that the window has a centre; got {kernel_size} "
            f"(try {kernel_size - 1} or {kernel_size + 1})"
        )


def check_clip(operator: str, x: torch.Tensor) -> None:
    """Raises ``ValueError`` unless ``x`` is floating (B, C, T, H, W) with C, T, H and W at least 1."""
    if x.dim() != 5:
        raise ValueError(f"{operator}: x must be (B, C, T, H, W), got {x.dim()} dimensions {tuple(x.shape)}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"{operator}: only the batch of x may be empty, got shape {tuple(x.shape)}")
    if x.dtype not in FLOATING:
        raise ValueError(f"{operator}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")
