"""`python -m dtf.data.prepare`."""

import sys

from dtf.data.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
