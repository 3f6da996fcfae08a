"""Which variant of an operator's kernels a tensor takes, and the text of that variant. Pure functions.

An operator's kernels stand in its own folder; they include the headers of this one by name.

Letters: B clips, C channels, T frames, H x W pixels, K window side.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

WARP = 32
VECTOR_BYTES = 16  # the widest access of a thread
STATIC_SHARED_BYTES = 48 * 1024  # what a block gets on every device without asking
GATHER_SOURCES = 3  # windows of weights in the largest gather, `enrich_backward`
NARROW_OFFSETS = (
    2**30
)  # elements of a frame up to which 32-bit offsets are safe, rounding to whole tiles included

DEFINES = {
    torch.float64: "DTYPE_FLOAT64",
    torch.float32: "DTYPE_FLOAT32",
    torch.float16: "DTYPE_FLOAT16",
    torch.bfloat16: "DTYPE_BFLOAT16",
}


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that sums run in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Compiled(Protocol):
    """What a launch has to know of a variant."""

    @property
    def threads(self) -> int:
        """Threads of a block."""

    def __hash__(self) -> int:
        """Compiled modules are kept by variant."""

    def defines(self) -> Mapping[str, int]:
        """Macros defined ahead of the text."""


@dataclass(frozen=True)
class Variant:
    """What is fixed when the kernels are compiled. Sizes, strides and the dilation are arguments.

    Attributes:
        dtype: Element type of every clip and map.
        kernel_size: Window side K.
        channels_last: Channels adjacent in memory; otherwise made for adjacent pixels, right for any strides.
        vector: Channels moved by one access; 1 unless channels last and aligned to 16 bytes.
        lanes: Threads along the channels of a run (channels last), else 1.
        wide_offsets: Offsets within one frame (channels last: with its channels) need 64 bits. Offsets
            between frames, clips and planes always have them.
        own: Further macros, those of an operator's own text.
    """

    dtype: torch.dtype
    kernel_size: int
    channels_last: bool
    vector: int
    lanes: int
    wide_offsets: bool = False
    own: tuple[tuple[str, int], ...] = ()

    @property
    def pixels(self) -> int:
        """Pixels of a run: more of them load less per window; pixels * K * K sums fit in registers."""
        return _pixels(self.kernel_size)

    @property
    def pixels_backward(self) -> int:
        """Pixels of a run in the gradient's gather; planar, its three windows of weights are registers."""
        return self.pixels if self.channels_last else max(1, self.pixels // 2)

    @property
    def slices(self) -> int:
        """Warps that share the channels of a run (planar), limited by the shared memory where they meet."""
        if self.channels_last:
            return 1
        window_bytes = self.pixels * self.kernel_size**2 * WARP * accumulator(self.dtype).itemsize
        slices = 8
        while slices > 1 and (slices + 1) * window_bytes > STATIC_SHARED_BYTES:
            slices //= 2
        return slices

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if not self.channels_last:
            return WARP * self.slices
        run_bytes = _run_bytes(self.dtype, self.kernel_size)
        threads = 256
        while threads > WARP and threads // self.lanes * run_bytes > STATIC_SHARED_BYTES:
            threads //= 2
        return threads

    @property
    def blocks(self) -> int:
        """Blocks that one multiprocessor should hold at once, which caps the registers of a thread at 128."""
        return 2 if self.kernel_size <= 3 and self.dtype != torch.float64 else 1

    @property
    def groups(self) -> int:
        """Runs that a block computes side by side."""
        return self.threads // self.lanes if self.channels_last else WARP

    def tile(self, height: int, width: int, dilation: int, pixels: int) -> tuple[int, int]:
        """Returns (runs side by side in a tile, tiles of a frame), as the kernels count them.

        A channels-last tile is ``groups // wide`` rows by ``wide`` runs; the shape with the fewest tiles
        wins, then the squarer one, whose border is read less often. A planar tile is 32 runs in row-major
        order.
        """
        if not self.channels_last:
            return 1, _ceil_div(self._runs(height, dilation, pixels) * width, WARP)
        runs = self._runs(width, dilation, pixels)
        shapes = [wide for wide in (1, 2, 4, 8) if wide <= self.groups]

        def cost(wide: int) -> tuple[int, int]:
            return -(-runs // wide) * -(-height // (self.groups // wide)), abs(
                wide * pixels - self.groups // wide
            )

        wide = min(shapes, key=cost)
        return wide, cost(wide)[0]

    def defines(self) -> dict[str, int]:
        """Macros that `window.cuh` and the headers that it includes are written in."""
        return {
            DEFINES[self.dtype]: 1,
            "KERNEL_SIZE": self.kernel_size,
            "CHANNELS_LAST": int(self.channels_last),
            "VECTOR": self.vector,
            "LANES": self.lanes,
            "SLICES": self.slices,
            "PIXELS": self.pixels,
            "PIXELS_BACKWARD": self.pixels_backward,
            "THREADS": self.threads,
            "BLOCKS": self.blocks,
            "WIDE_OFFSETS": int(self.wide_offsets),
            **dict(self.own),
        }

    @staticmethod
    def _runs(size: int, dilation: int, pixels: int) -> int:
        return dilation * _ceil_div(_ceil_div(size, dilation), pixels)


def choose(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    map_strides: tuple[tuple[int, ...], ...],
    aligned: bool,
    kernel_size: int,
) -> Variant:
    """Returns the variant that a launch takes.

    Args:
        dtype: Dtype of the clips.
        shape: (B, C, T, H, W) of the clips.
        strides: Their strides, in elements.
        map_strides: Strides of each tensor of maps (B, rows, T, H, W).
        aligned: Whether every clip starts at a multiple of 16 bytes.
        kernel_size: Window side K.
    """
    channels = shape[1]
    # A single channel is adjacent to itself in any layout; pixels are then the better axis.
    channels_last = strides[1] == 1 and channels > 1
    span = max(_span(shape, each, (3, 4)) for each in (strides, *map_strides))
    wide = span + channels_last * channels > NARROW_OFFSETS
    if not channels_last:
        return Variant(dtype, kernel_size, channels_last, vector=1, lanes=1, wide_offsets=wide)
    vector = VECTOR_BYTES // dtype.itemsize
    steps = [channels, *(strides[d] for d in (0, 2, 3, 4) if shape[d] > 1)]
    if not aligned or any(step % vector for step in steps):
        return Variant(dtype, kernel_size, channels_last, vector=1, lanes=WARP, wide_offsets=wide)
    lanes = 8
    while lanes < WARP and (
        lanes * vector < channels or WARP // lanes * _run_bytes(dtype, kernel_size) > STATIC_SHARED_BYTES
    ):
        lanes *= 2
    return Variant(dtype, kernel_size, channels_last, vector, lanes, wide)


def _span(shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return sum((shape[d] - 1) * strides[d] for d in dims) + 1


def _pixels(kernel_size: int) -> int:
    return {1: 4, 3: 4, 5: 2}.get(kernel_size, 1)


def _run_bytes(dtype: torch.dtype, kernel_size: int) -> int:
    # Weights of one run in shared memory (channels last).
    return GATHER_SOURCES * _pixels(kernel_size) * kernel_size**2 * accumulator(dtype).itemsize


_HEADERS = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', flags=re.MULTILINE)


@functools.cache
def _text(path: Path) -> str:
    """The file with the headers that it names in place: a compiler at run time finds no files."""

    def header(match: re.Match[str]) -> str:
        return _text(_HEADERS / match.group(1))

    return _INCLUDE.sub(header, path.read_text(encoding="utf-8"))


@functools.cache
def render(kernels: Path, variant: Compiled) -> str:
    """Returns the CUDA C++ text of an operator's kernels in a variant, complete in itself.

    Args:
        kernels: The operator's `.cu` file.
        variant: What it is compiled for; hashable.
    """
    lines = [f"#define {name} {value}" for name, value in variant.defines().items()]
    return "\n".join([*lines, _text(kernels)])
