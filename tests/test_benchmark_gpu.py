"""The GPU benchmark runs in its reduced form on a CPU, and needs none of the training framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"

# Imports of these fail in the child, as on a machine that has torch, timm and CuPy alone.
WITHOUT = """
import runpy, sys
for name in ("pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb", "pytorchvideo", "av"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_quick_form_prints_and_writes_every_table(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT.parent), str(SCRIPT)]
    command += ["--quick", "--no-compile", "--rounds", "3", "--device", "cpu", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {"device", "torch", "commit", "date"} <= set(report)
    assert {row["table"] for row in report["rows"]} == {"operators", "block", "steps"}
    assert not report["left_out"]
    for row in report["rows"]:
        assert all(value > 0 for value in row.values() if isinstance(value, float)), row
    assert "frame_wise_aggregation quick T=4 bfloat16" in done.stdout


def test_full_shapes_are_refused_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--quick" in done.stderr
