"""Where a network runs."""

from __future__ import annotations

import re

import torch

DEVICES = r"auto|cpu|cuda(:\d{1,3})?"


def choose_device(device: str) -> torch.device:
    """The device of a name; "auto": a GPU where there is one.

    Raises:
        ValueError: no such device.
    """
    import torch

    if not re.fullmatch(DEVICES, device, flags=re.ASCII):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    if device.startswith("cuda") and int(device[5:] or 0) >= count:
        seen = f"{count or 'no'} GPU{'s' * (count > 1)}"
        raise ValueError(f"device={device}: torch {torch.__version__} sees {seen} here")
    return torch.device(device)
