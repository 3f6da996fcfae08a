"""Video classification networks with dynamic temporal filters: operators, models, data, training."""

__version__ = "0.1.0"
