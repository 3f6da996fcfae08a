"""What reaches CuPy, and what is refused before it does. CUDA and CuPy are played by stand-ins."""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dtf import ops
from dtf.ops import dispatch, frame_wise_aggregation, temporal_aggregation
from dtf.ops.common import runtime
from dtf.ops.common.source import Variant, render

KERNELS = Path(ops.__file__).with_name("frame_wise_aggregation") / "kernels.cu"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A machine with CuPy and two devices of compute capability 7.0, to all that dispatch and launch see."""
    state = types.SimpleNamespace(current=0, modules=[], launches=[])

    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            self.device = state.current
            state.modules.append((code, options))

        def get_function(self, name: str):
            def call(grid, block, arguments, *, stream) -> None:
                assert state.current == self.device, "launched on another device than compiled for"
                state.launches.append((name, grid, block, arguments, stream.ptr))

            return call

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before, state.current = state.current, chosen.index
        yield
        state.current = before

    cupy = types.ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.RawModule = RawModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # With torch 2.10 a fake tensor of an available device begins by waking the real one.
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda d: types.SimpleNamespace(cuda_stream=1000 + d.index)
    )
    monkeypatch.setattr(runtime, "_run_probe", lambda: True)
    caches = (runtime._module, runtime._function, runtime.missing)
    for cache in caches:
        cache.cache_clear()
    yield state
    for cache in caches:
        cache.cache_clear()


def test_launch_uses_the_device_and_the_current_stream_of_the_tensor(cuda: types.SimpleNamespace) -> None:
    variant = Variant(torch.float32, 3, channels_last=False, vector=1, lanes=1)
    for index in (0, 1, 1):
        runtime.launch(KERNELS, "enrich", variant, 7, [2**40, -1], torch.device("cuda", index))
    assert cuda.current == 0
    assert cuda.modules == [(render(KERNELS, variant), ("--std=c++17",))] * 2  # once per device
    assert cuda.launches == [
        ("enrich", (7,), (variant.threads,), (2**40, -1), 1000 + index) for index in (0, 1, 1)
    ]


def test_launch_caps_the_grid_and_skips_empty_work(cuda: types.SimpleNamespace) -> None:
    variant = Variant(torch.float32, 3, channels_last=False, vector=1, lanes=1)
    runtime.launch(KERNELS, "enrich", variant, 0, [], torch.device("cuda", 0))
    assert not cuda.launches
    runtime.launch(KERNELS, "enrich", variant, 2**40, [], torch.device("cuda", 0))
    assert cuda.launches[0][1] == (2**31 - 1,)


def test_a_tensor_on_the_cpu_is_refused(cuda: types.SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="'cupy' cannot run: takes tensors on cuda, got cpu"):
        frame_wise_aggregation(torch.zeros(1, 4, 2, 3, 3), backend="cupy")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ImportError("libnvrtc.so.12: cannot open shared object file"), "libnvrtc.so.12: cannot open"),
        (RuntimeError("nvrtc: error:\n  invalid architecture"), "RuntimeError: nvrtc: error: invalid arch"),
        (None, "computes wrong numbers here"),
    ],
    ids=["does not load", "does not compile", "is wrong"],
)
def test_a_cupy_that_does_not_work_is_a_reason_and_auto_takes_torch(
    cuda: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, broken: Exception | None, reason: str
) -> None:
    asked = []

    def probe() -> bool:
        asked.append(1)
        if broken is not None:
            raise broken
        return False

    monkeypatch.setattr(runtime, "_run_probe", probe)
    operator = dispatch.OPERATORS["frame_wise_aggregation"]
    with FakeTensorMode():
        x = torch.empty(1, 4, 2, 3, 3, device="cuda:1")
        assert operator.select("auto", x) is operator.backends["torch"].run
        with pytest.raises(ValueError, match=r"backend 'cupy' cannot run") as error:
            operator.select("cupy", x)
    assert reason in str(error.value)
    assert reason in dispatch.describe()
    assert len(asked) == 1  # once per process


def test_without_cupy_or_a_device_all_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime.missing.cache_clear()
    with pytest.raises(ValueError, match=r"CuPy is not installed.*torch finds no CUDA device"):
        frame_wise_aggregation(torch.zeros(1, 4, 2, 3, 3), backend="cupy")


def test_a_dtype_that_the_device_cannot_convert_is_refused(cuda: types.SimpleNamespace) -> None:
    operator = dispatch.OPERATORS["frame_wise_aggregation"]
    with FakeTensorMode():
        x = torch.empty(1, 4, 2, 3, 3, device="cuda:1", dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"bfloat16 needs compute capability 8\.0, cuda:1 has 7\.0"):
            operator.select("cupy", x)
        assert operator.select("auto", x) is operator.backends["torch"].run
        assert operator.select("auto", x.half()) is operator.backends["cupy"].run


def test_mixed_dtypes_and_channels_of_the_maps_are_refused() -> None:
    x = torch.zeros(1, 4, 2, 3, 3)
    with pytest.raises(ValueError, match=r"must share dtype and device.*torch\.float32.*torch\.float16"):
        temporal_aggregation(x, torch.zeros(1, 9, 2, 3, 3).half(), backend="cupy")
    with pytest.raises(ValueError, match=r"attention must be \(B, K\*K, T, H, W\) = \(1, 9, 2, 3, 3\)"):
        temporal_aggregation(x, torch.zeros(1, 25, 2, 3, 3), backend="cupy")
