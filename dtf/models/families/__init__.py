"""Names of networks, one file a family. A new family is imported here, and nowhere else."""

from dtf.models.families import c2d as _c2d  # noqa: F401 (each registers its networks)
from dtf.models.families import ddf as _ddf  # noqa: F401
from dtf.models.families import dtf as _dtf  # noqa: F401
from dtf.models.families import sifa as _sifa  # noqa: F401
from dtf.models.families import tada as _tada  # noqa: F401
