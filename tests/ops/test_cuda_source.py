"""Choice and rendering of kernel variants, and their compilation by NVRTC where it is found. No GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch
from quick import quick

import dtf.ops
from dtf.ops.common.source import DEFINES, STATIC_SHARED_BYTES, Variant, accumulator, choose, render
from dtf.ops.decoupled_dynamic_filter.cupy_backend import macros


def choose_for(
    x: torch.Tensor, kernel_size: int = 3, aligned: bool = True, maps: tuple[int, ...] = ()
) -> Variant:
    strides = (maps,) if maps else ()
    return choose(x.dtype, tuple(x.shape), tuple(x.stride()), strides, aligned, kernel_size)


FILES = {path.parent.name: path for path in Path(dtf.ops.__file__).parent.glob("*/kernels.cu")}
KERNELS = {
    name: set(re.findall(r"^KERNEL (\w+)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    for name, path in FILES.items()
}
# Macros that an operator's text needs besides those of a variant. Every one of its forms is compiled, with
# different dtypes and layouts.
OWN = {
    "decoupled_dynamic_filter": [macros(stride, combine) for combine in ("mul", "add") for stride in (1, 2)]
}


def text_of(operator: str, chosen: Variant) -> str:
    forms = OWN.get(operator, [()])
    form = forms[(list(DEFINES).index(chosen.dtype) + chosen.channels_last) % len(forms)]
    return render(FILES[operator], dataclasses.replace(chosen, own=form))


def test_every_operator_has_kernels() -> None:
    assert set(KERNELS) == set(dtf.ops.__all__)
    assert all(KERNELS.values())


LAYOUTS = {"planar": (False, False), "channels_last": (True, False), "channels_last_unaligned": (True, True)}


def variant(dtype: torch.dtype, layout: str, kernel_size: int = 3) -> Variant:
    channels_last, unaligned = LAYOUTS[layout]
    channels = 33 if unaligned else 64
    x = torch.empty(2, channels, 3, 5, 6, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    chosen = choose_for(x, kernel_size)
    assert chosen.channels_last == channels_last
    assert (chosen.vector == 1) == (unaligned or not channels_last)
    return chosen


@pytest.mark.parametrize("operator", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DEFINES, ids=str)
def test_render_is_complete_and_names_its_variant(dtype: torch.dtype, layout: str, operator: str) -> None:
    chosen = variant(dtype, layout)
    text = text_of(operator, chosen)
    defined = dict(re.findall(r"^#define (\w+) (\w+)$", text.split("typedef")[0], flags=re.MULTILINE))
    assert defined[DEFINES[dtype]] == "1"
    assert sum(name.startswith("DTYPE_") for name in defined) == 1
    assert defined["KERNEL_SIZE"] == "3"
    assert defined["CHANNELS_LAST"] == str(int(chosen.channels_last))
    assert "#include" not in text  # NVRTC needs no header
    assert "atomic" not in text  # results do not depend on the order of threads
    assert set(re.findall(r"^KERNEL (\w+)\(", text, flags=re.MULTILINE)) == KERNELS[operator]


def test_sizes_are_arguments_not_source_text() -> None:
    texts = {
        text_of("frame_wise_aggregation", choose_for(torch.empty(b, c, t, h, w)))
        for b, c, t, h, w in [(1, 8, 2, 5, 6), (3, 64, 7, 9, 31), (2, 5, 1, 2, 1)]
    }
    assert len(texts) == 1


def test_alignment_decides_the_width_of_accesses() -> None:
    wide = torch.empty(1, 64, 2, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    assert choose_for(wide).vector == 8
    assert choose_for(wide, aligned=False).vector == 1
    gaps = torch.empty(1, 65, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)[:, :64]
    assert choose_for(gaps).vector == 1


def test_far_offsets_within_a_frame_take_64_bits() -> None:
    small = torch.empty(1, 64, 2, 4, 4, device="meta")
    large = torch.empty(1, 1, 1, 40_000, 40_000, device="meta")
    assert not choose_for(small).wide_offsets
    assert choose_for(large).wide_offsets
    assert choose_for(small, maps=(1, 1, 1, 2**30, 1)).wide_offsets


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9, 15, 31])
@pytest.mark.parametrize("dtype", DEFINES, ids=str)
def test_blocks_stay_within_static_shared_memory(dtype: torch.dtype, kernel_size: int) -> None:
    bytes_per_window = kernel_size**2 * accumulator(dtype).itemsize
    for layout, channels in itertools.product(LAYOUTS, (8, 512)):
        x = torch.empty(1, channels, 2, 4, 4, dtype=dtype)
        if LAYOUTS[layout][0]:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        chosen = choose_for(x, kernel_size)
        assert chosen.threads % 32 == 0
        assert chosen.threads <= 1024
        if chosen.channels_last:
            used = chosen.groups * 3 * chosen.pixels * bytes_per_window
        else:
            assert chosen.slices >= chosen.pixels  # every pixel of a run has a warp that owns it
            used = (chosen.slices + 1) * 32 * chosen.pixels * bytes_per_window if chosen.slices > 1 else 0
        assert used <= STATIC_SHARED_BYTES


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """Returns NVRTC from torch's or CuPy's CUDA wheels, or from the system; ``None`` where there is none."""
    names = [f"libnvrtc.so.{major}" for major in (13, 12)]
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = [str(path) for root in roots for name in names for path in root.glob(f"*/lib/{name}")]
    for name in [*found, *names]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile_with_nvrtc(text: str, architecture: str) -> bytes:
    library = nvrtc()
    if library is None:
        pytest.skip("no NVRTC: neither torch's CUDA wheels nor a CUDA toolkit are installed")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"--std=c++17")
    failed = library.nvrtcCompileProgram(program, 2, options)
    assert not library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    assert not library.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()[:4000]
    assert not library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    assert not library.nvrtcGetPTX(program, ptx)
    assert not library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.raw


@pytest.mark.parametrize("operator", KERNELS)
@pytest.mark.parametrize("layout", quick(LAYOUTS, "channels_last"))
@pytest.mark.parametrize("dtype", quick(DEFINES, torch.float32), ids=str)
def test_nvrtc_compiles_every_dtype_and_layout(dtype: torch.dtype, layout: str, operator: str) -> None:
    ptx = compile_with_nvrtc(text_of(operator, variant(dtype, layout)), "compute_90")
    assert set(re.findall(rb"\.entry (\w+)\(", ptx)) == {name.encode() for name in KERNELS[operator]}


@pytest.mark.slow
@pytest.mark.parametrize("operator", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "layout", "kernel_size", "architecture"),
    [
        (torch.float32, "channels_last", 5, "sm_90"),
        (torch.bfloat16, "channels_last", 3, "sm_80"),
        (torch.float16, "planar", 3, "sm_75"),
        (torch.float64, "planar", 1, "sm_120"),
    ],
    ids=str,
)
def test_nvrtc_builds_machine_code(
    dtype: torch.dtype, layout: str, kernel_size: int, architecture: str, operator: str
) -> None:
    assert compile_with_nvrtc(text_of(operator, variant(dtype, layout, kernel_size)), architecture)
