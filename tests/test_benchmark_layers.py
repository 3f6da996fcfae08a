"""The benchmark of a block runs on a CPU in its smallest form, checks before it measures and names faults."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import dtf.models  # noqa: F401 (registers families)
from dtf.layers.temporal import FAMILIES

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "layers.py"
SMALLEST = ["--frames", "1", "--clips", "1", "--rounds", "2", "--warmup", "0"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_layers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return module


def test_smallest_form_of_the_whole_benchmark(benchmark, capsys, tmp_path):
    benchmark.main([*SMALLEST, "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"device", "threads", "torch", "commit", "date", "frames", "dtype"} <= set(report)
    assert [(row["channels"], row["side"]) for row in report["rows"]] == benchmark.SHAPES
    for row in report["rows"]:
        assert f"{row['channels']} x {row['side']:>2} x  1" in printed
        for part in ("forward", "forward+backward"):
            # A median of two rounds' ratios lies between them.
            low, high = row[f"block {part} spread"]
            assert all(row[f"{name} {part} ms"] > 0 for name in ("block", "reference", "conv"))
            assert low <= row[f"block {part} ratio"] <= high
    assert sorted(report["geometric_mean_ratio"]) == [
        *("block forward", "block forward+backward", "reference forward", "reference forward+backward")
    ]


@pytest.mark.parametrize("family", sorted(n for n, f in FAMILIES.items() if f.build.__module__[:4] == "dtf."))
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_dtype(benchmark, monkeypatch, capsys, dtype, family):
    monkeypatch.setattr(benchmark, "SHAPES", [(32, 6)])
    benchmark.main([*SMALLEST, "--frames", "4", "--family", family, "--dtype", dtype, "--backend", "torch"])
    assert f"convolution, {dtype}" in capsys.readouterr().out


def test_a_wrong_block_gets_no_figure(benchmark, monkeypatch, capsys):
    build = benchmark.build

    def build_wrong(options, backend, *args):
        layer = build(options, backend, *args)
        if backend != "reference":
            layer.register_forward_hook(lambda module, inputs, y: y * 1.001)
        return layer

    monkeypatch.setattr(benchmark, "SHAPES", [(32, 6)])
    monkeypatch.setattr(benchmark, "build", build_wrong)
    with pytest.raises(
        SystemExit, match=r"output is 1\.0e-03 away from the reference for \(1, 32, 1, 6, 6\)"
    ):
        benchmark.main(SMALLEST)
    assert "32 x  6" not in capsys.readouterr().out


def test_a_wrong_gradient_gets_no_figure(benchmark):
    x = torch.randn(3, requires_grad=True)
    same, other = nn.Identity(), nn.Hardtanh(-1e-9, 1e-9)
    benchmark.check(same, same, x, torch.ones(3))
    with pytest.raises(SystemExit, match="away from the reference"):
        benchmark.check(other, same, x, torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--frames", "0"], "--frames must be at least 1, got 0"),
        (["--family", "ddf", "--set", "combin=add"], "--set combin: ddf has clip_filter, combine, heads"),
        (["--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--backend", "cupy"], "--backend cupy needs --device cuda, got cpu"),
        (["--json", "no/such/folder/out.json"], "no/such/folder/out.json: there is no such folder"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_measured(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        benchmark.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "sees no GPU here" in capsys.readouterr().err
