"""A run without Lightning: its folder, lock, settings, command lines and their errors, checkpoints."""

import os

# Read when torch is loaded, which commands do after this package. OpenMP's threads otherwise spin while they
# wait for each other; where the loader's workers want the same cores, a small network then took 50 times as
# long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
