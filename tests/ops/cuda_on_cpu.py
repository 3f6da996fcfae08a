"""Runs the CUDA kernels on the CPU: renders a variant, compiles it with the host's C++ compiler behind
``cuda_shim.h``, and stands in for ``dtf.ops.common.runtime.launch``."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from dtf.ops.common.source import Variant, render

SHIM = Path(__file__).with_name("cuda_shim.h")
# More blocks than this are folded into fewer: a grid of any size covers the work.
MOST_BLOCKS = 64


def compiler() -> str | None:
    """Returns the C++ compiler's path, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dtf-cuda-on-cpu-")


@functools.cache
def library(kernels: Path, variant: Variant) -> ctypes.CDLL:
    """Returns an operator's kernels in a variant, compiled for the CPU."""
    text = render(kernels, variant)
    names = re.findall(r"^KERNEL (\w+)\(", text, flags=re.MULTILINE)
    defines, _, rest = text.partition("// Types, memory access")
    exports = "\n".join(f"CUDA_SHIM_EXPORT({kernel})" for kernel in names)
    source = f'{defines}\n#include "{SHIM.name}"\n// {rest}\n{exports}\n'
    stem = Path(_folder().name) / hashlib.sha256(source.encode()).hexdigest()[:16]
    stem.with_suffix(".cc").write_text(source)
    command = [compiler() or "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{SHIM.parent}"]
    command += ["-U_FORTIFY_SOURCE", "-o", str(stem.with_suffix(".so")), str(stem.with_suffix(".cc"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(stem.with_suffix(".so")))


def launch(
    kernels: Path, kernel: str, variant: Variant, blocks: int, arguments: list[int], device: torch.device
) -> None:
    """Takes the place of :func:`dtf.ops.common.runtime.launch` for CPU tensors."""
    assert device.type == "cpu"
    if blocks == 0:
        return
    run = getattr(library(kernels, variant), f"run_{kernel}")
    values = (ctypes.c_int64 * len(arguments))(*arguments)
    failed = run(
        ctypes.c_int64(min(blocks, MOST_BLOCKS)),
        ctypes.c_int64(variant.threads),
        values,
        ctypes.c_int64(len(arguments)),
    )
    assert not failed, f"{kernel} does not take {len(arguments)} arguments"
