"""`python -m dtf.ops`: which backend of which operator runs on this machine, and why the others do not."""

import argparse

from dtf.ops.dispatch import describe
from dtf.text import quiet_on_closed_pipe

if __name__ == "__main__":
    argparse.ArgumentParser("python -m dtf.ops", description=__doc__).parse_args()  # it takes none
    with quiet_on_closed_pipe():
        print(describe())
