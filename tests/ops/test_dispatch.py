"""The choice between backends, with what is installed and available faked."""

from __future__ import annotations

import logging
import runpy
import subprocess
import sys

import pytest
import torch

import dtf.ops
from dtf.ops import temporal_correlation
from dtf.ops.common import runtime
from dtf.ops.common.private import constant_in_graphs
from dtf.ops.dispatch import OPERATORS, Backend, Cost, Operator, cupy_missing, describe, register


def _cost(x: torch.Tensor) -> Cost:
    return Cost(x.numel(), x.numel() * x.element_size())


def _operator(*backends: Backend) -> Operator:
    return Operator("shout", {backend.name: backend for backend in backends}, plain=abs, cost=_cost)


def _backend(name: str, **facts: object) -> Backend:
    return Backend(name, lambda *tensors: name, **facts)  # type: ignore[arg-type]


X = torch.zeros(2)
BROKEN = _backend("cupy", devices=("cpu",), missing=lambda: ["no compiler", "no driver"])
NARROW = _backend("torch", dtypes=(torch.float64,))
PLAIN = _backend("reference", double_backward=True)


def test_auto_takes_the_first_backend_that_accepts():
    first, second = _backend("cupy"), _backend("torch")
    assert _operator(first, second, PLAIN).select("auto", X)(X) == "cupy"
    assert _operator(BROKEN, second, PLAIN).select("auto", X)(X) == "torch"


def test_auto_never_takes_the_reference():
    refusals = r"no backend can run. cupy: no compiler; no driver \| torch: takes"
    with pytest.raises(ValueError, match=refusals) as error:
        _operator(BROKEN, NARROW, PLAIN).select("auto", X)
    assert "takes dtypes float64, got float32" in str(error.value)
    assert _operator(BROKEN, NARROW, PLAIN).select("reference", X)(X) == "reference"


def test_auto_logs_each_choice_once(caplog):
    operator = _operator(BROKEN, _backend("torch"), PLAIN)
    with caplog.at_level(logging.INFO, "dtf.ops.dispatch"):
        for _ in range(3):
            operator.select("auto", X)
    assert [record.getMessage() for record in caplog.records] == ["shout: backend 'torch' on cpu"]


def test_a_named_backend_that_cannot_run_raises_with_all_its_reasons():
    backend = _backend("cupy", devices=("cuda",), dtypes=(torch.float16,), missing=lambda: ["no CuPy"])
    with pytest.raises(ValueError, match="backend 'cupy' cannot run") as error:
        _operator(backend, _backend("torch"), PLAIN).select("cupy", X)
    for reason in (
        "takes tensors on cuda, got cpu",
        "takes dtypes float16, got float32",
        "no CuPy",
        "dtf.ops",
    ):
        assert reason in str(error.value)


def test_every_tensor_is_asked():
    narrow = _backend("torch", dtypes=(torch.float32,), devices=("cpu",))
    refuses_pairs = _backend("cupy", refuses=lambda x, *others: ["takes one tensor"] if others else [])
    operator = _operator(refuses_pairs, narrow, PLAIN)
    assert operator.select("auto", X)(X) == "cupy"
    assert operator.select("auto", X, X)(X, X) == "torch"
    with pytest.raises(
        ValueError, match=r"cupy: takes one tensor \| torch: takes dtypes float32, got float64$"
    ):
        operator.select("auto", X, X.double())
    with pytest.raises(ValueError, match="takes tensors on cpu, got meta"):
        operator.select("torch", X, X.to("meta"))


def test_the_mark_is_the_one_of_the_public_function():
    def ours():
        return 0

    def theirs():
        return 0

    torch.compiler.assume_constant_result(theirs)
    constant_in_graphs(ours)
    assert vars(ours) == vars(theirs)
    calls = []

    @constant_in_graphs
    def untraceable():
        calls.append(1)
        return len(open(__file__).read()) > 0

    compiled = torch.compile(lambda x: x + untraceable(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), X + 1)
    assert len(calls) == 1


def test_unknown_backend_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown backend 'cuppy'; did you mean 'cupy'.*Allowed: auto, cupy"
    ):
        _operator(BROKEN, NARROW, PLAIN).select("cuppy", X)


def test_an_operator_is_registered_once():
    with pytest.raises(AssertionError, match="registered twice"):
        register("temporal_correlation", PLAIN, plain=abs, cost=_cost)


def test_every_operator_prefers_the_kernels_that_it_has():
    assert set(dtf.ops.__all__) <= set(OPERATORS)
    for operator in OPERATORS.values():
        assert [*operator.backends] == [n for n in ("cupy", "torch", "reference") if n in operator.backends]
        assert {"torch", "reference"} <= set(operator.backends)


@pytest.fixture
def fresh_probe():
    """What is live is asked once per process: forget it before and after."""
    runtime.missing.cache_clear()
    yield
    runtime.missing.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
def test_cupy_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reasons = "; ".join(cupy_missing())
    assert "CuPy is not installed (pip install -e '.[cuda13]'" in reasons
    assert "no CUDA device" in reasons
    with pytest.raises(ValueError, match="CuPy is not installed"):
        temporal_correlation(torch.zeros(1, 1, 1, 1, 1), backend="cupy")


@pytest.mark.usefixtures("fresh_probe")
def test_describe_lists_what_is_live_and_why_the_rest_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = describe().splitlines()
    for name, operator in OPERATORS.items():
        place = lines.index(name)
        states = {line.split()[0]: line for line in lines[place + 1 : place + 1 + len(operator.backends)]}
        if "cupy" in operator.backends:
            assert "not live: " in states["cupy"]
            assert "torch finds no CUDA device" in states["cupy"]
        assert " live: any device; float64" in states["torch"]
        assert "double backward" in states["reference"]


def test_the_command_prints_the_table():
    run = subprocess.run([sys.executable, "-m", "dtf.ops"], capture_output=True, text=True, check=True)
    assert "frame_wise_aggregation" in run.stdout
    assert "reference  live" in run.stdout


def test_the_command_refuses_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtf.ops", "device=cuda"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("dtf.ops", run_name="__main__")
    assert "unrecognized arguments: device=cuda" in capsys.readouterr().err
