"""Compiles the kernels with CuPy (NVRTC) on first use and launches them on torch's current stream."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from dtf.ops.cuda.source import Variant, render

MOST_BLOCKS = 2**31 - 1


@dataclass(frozen=True)
class _Stream:
    # CuPy launches on anything that has the address of a CUDA stream under this name.
    ptr: int


@functools.cache
def _module(device_index: int, variant: Variant) -> Any:
    # One entry per device: a compiled module belongs to the device that is current while it is built.
    import cupy

    return cupy.RawModule(code=render(variant), options=("--std=c++17",))


@functools.cache
def _function(device_index: int, variant: Variant, kernel: str) -> Any:
    return _module(device_index, variant).get_function(kernel)


def launch(kernel: str, variant: Variant, blocks: int, arguments: list[int], device: torch.device) -> None:
    """Queues a kernel on the current stream of ``device``.

    Args:
        kernel: Name of a kernel in ``kernels.cu``.
        variant: What the kernel is compiled for.
        blocks: Blocks of the grid; any number covers the work, 0 launches nothing.
        arguments: Data pointers and 64-bit integers, in the kernel's order.
        device: A CUDA device.
    """
    if blocks == 0:
        return
    # Compiling and launching both act on the current device, which need not be the tensors'.
    with torch.cuda.device(device):
        function = _function(torch.cuda.current_device(), variant, kernel)
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        # A Python integer reaches the kernel as 64 bits.
        function((min(blocks, MOST_BLOCKS),), (variant.threads,), tuple(arguments), stream=stream)
