"""Weights: our file format, image weights, published checkpoints; files of strangers are data alone."""

from dtf.models.weights.file import load_weights, save_weights

__all__ = ["load_weights", "save_weights"]
