"""`python -m dtf.ops`: which backend of which operator runs on this machine, and why the others do not."""

from dtf.ops.dispatch import describe

if __name__ == "__main__":
    print(describe())
