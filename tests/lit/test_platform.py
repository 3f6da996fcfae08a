"""What other platforms lack: no module needs it to be imported, and what needs it at work says so."""

from __future__ import annotations

import subprocess
import sys

from engine import REPOSITORY

WITHOUT = """
import os, pathlib, pkgutil, signal, sys
# Other packages know the platforms by themselves; here they find Linux.
import hydra, lightning_fabric.plugins.environments, matplotlib.pyplot, pytorch_lightning.strategies.launchers
import pytorch_lightning.loggers, pytorchvideo.data, rich.progress, timm
import torch._dynamo, torch.onnx, torchmetrics
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
for name in ("EX_TEMPFAIL", "setpgid", "getpgid", "killpg", "sched_getaffinity", "fork", "getuid", "mkfifo"):
    delattr(os, name)
import dtf, importlib
names = [m.name for m in pkgutil.walk_packages(dtf.__path__, "dtf.") if not m.name.endswith("__main__")]
for name in (*names, "train", "eval"):
    importlib.import_module(name)
from dtf.data.datamodule import init_worker
from dtf.runs.errors import one_line_errors
from dtf.runs.folder import FolderInUse, alone_in
init_worker(0)
print(len(names), FolderInUse.code)
with one_line_errors(), alone_in(pathlib.Path(sys.argv[1])):
    print("at work")
"""


def test_a_platform_without_locks_and_signals_is_told_what_it_can_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 1, done.stderr
    number, code = done.stdout.split()
    assert int(number) > 50
    assert int(code) == 75
    assert done.stderr.startswith("error: this platform has no file locks")
    assert done.stderr.count("\n") == 1
