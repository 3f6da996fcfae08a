"""Data sets with annotations of their own, one file each. A new one is imported here, and nowhere else.

The generated set `motion` is none of these: nothing of it is downloaded or prepared.
"""

# The order is that of the help.
# isort: off
from dtf.data.sets import kinetics as _kinetics  # noqa: F401 (each registers its data sets)
from dtf.data.sets import ssv2 as _ssv2  # noqa: F401
from dtf.data.sets import diving48 as _diving48  # noqa: F401
