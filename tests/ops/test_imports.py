"""`dtf.ops` and `dtf.models` import and work without what only the engine, the data and the kernels need."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

# `import name` then fails as if it were not installed, and so does importlib.util.find_spec(name).
BLOCK = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
"""
ENGINE = [
    "pytorch_lightning",
    "lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "pytorchvideo",
    "cupy",
    "av",
    "torchmetrics",
]


def run(code: str, names: list[str]) -> str:
    script = BLOCK.format(names=names) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operators_need_torch_alone():
    out = run(
        """
        import torch
        from dtf.ops import frame_wise_aggregation
        enriched, correlation = frame_wise_aggregation(torch.ones(1, 2, 3, 4, 5))
        print(tuple(correlation.shape), [name for name in ("timm", "torchvision") if sys.modules[name]])
        """,
        [*ENGINE, "timm", "torchvision"],
    )
    assert out.strip() == "(1, 9, 3, 4, 5) []"


def test_models_need_no_engine():
    out = run(
        """
        import torch
        from dtf.models import create_model, list_models
        model = create_model("dtf_tiny", num_classes=3, clip_length=4)
        print(len(list_models()) >= 16, tuple(model(torch.ones(1, 3, 4, 32, 32)).shape))
        try:
            create_model("ptv_x3d_s")
        except ImportError as error:
            print("ptv_x3d_s" in list_models(), "pip install pytorchvideo" in str(error))
        """,
        ENGINE,
    )
    assert out.split("\n")[:2] == ["True (1, 3)", "True True"]


def test_the_blocker_blocks():
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=["timm"]) + "import dtf.models"],
        capture_output=True,
        text=True,
    )
    assert re.search(r"ModuleNotFoundError: .*timm", done.stderr)


def test_operators_add_little_to_the_import_of_torch():
    out = run(
        """
        import time
        import torch
        begin = time.process_time()
        import dtf.ops
        print(time.process_time() - begin)
        """,
        [],
    )
    assert float(out) < 0.2
