"""Compiles the kernels with CuPy (NVRTC) on first use and launches them on torch's current stream."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtf.ops.common.source import Compiled, render

MOST_BLOCKS = 2**31 - 1


@dataclass(frozen=True)
class _Stream:
    # CuPy launches on anything that has the address of a CUDA stream under this name.
    ptr: int


@functools.cache
def _module(device_index: int, kernels: Path, variant: Compiled) -> Any:
    # One entry per device: a compiled module belongs to the device that is current while it is built.
    import cupy

    return cupy.RawModule(code=render(kernels, variant), options=("--std=c++17",))


@functools.cache
def _function(device_index: int, kernels: Path, variant: Compiled, kernel: str) -> Any:
    return _module(device_index, kernels, variant).get_function(kernel)


def launch(
    kernels: Path, kernel: str, variant: Compiled, blocks: int, arguments: list[int], device: torch.device
) -> None:
    """Queues a kernel on the current stream of ``device``.

    Args:
        kernels: The operator's `.cu` file.
        kernel: Name of a kernel in it.
        variant: What the kernel is compiled for.
        blocks: Blocks of the grid; any number covers the work, 0 launches nothing.
        arguments: Data pointers and 64-bit integers, in the kernel's order.
        device: A CUDA device.
    """
    if blocks == 0:
        return
    # Compiling and launching both act on the current device, which need not be the tensors'.
    with torch.cuda.device(device):
        function = _function(torch.cuda.current_device(), kernels, variant, kernel)
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        # A Python integer reaches the kernel as 64 bits.
        function((min(blocks, MOST_BLOCKS),), (variant.threads,), tuple(arguments), stream=stream)


_PROBE = 'extern "C" __global__ void probe(long long* out, long long value) { *out = value; }'


@functools.cache
def missing() -> tuple[str, ...]:
    """Returns why CuPy kernels cannot run on this machine; empty where one was compiled, run and was right.

    Asked once per process. A CuPy that is installed need not work: its CUDA major may be another one than the
    driver's, its compiler or headers may be absent, its cache folder may not be writable.
    """
    reasons = []
    if importlib.util.find_spec("cupy") is None:
        reasons.append(
            "CuPy is not installed (pip install -e '.[cuda13]', or cuda12, cuda11: your CUDA major)"
        )
    if not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    if reasons:
        return tuple(reasons)
    try:
        right = _run_probe()
    except Exception as error:  # whatever a broken installation raises: the torch backend serves instead
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return (f"CuPy cannot compile and run a kernel here ({text[:300]})",)
    return () if right else ("a kernel compiled by CuPy computes wrong numbers here",)


def _run_probe() -> bool:
    """Compile a kernel that writes a number, run it, and compare."""
    import cupy

    module = cupy.RawModule(code=_PROBE, options=("--std=c++17",))
    out = torch.zeros(1, dtype=torch.int64, device="cuda")
    stream = _Stream(torch.cuda.current_stream(out.device).cuda_stream)
    module.get_function("probe")((1,), (1,), (out.data_ptr(), 2**40 + 1), stream=stream)
    return out.item() == 2**40 + 1
