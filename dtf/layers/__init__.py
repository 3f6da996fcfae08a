"""Temporal layers to lift out: modules on clips (B, C, T, H, W), one file a family. They need torch alone."""

from dtf.layers.dtf import DTFBlock
from dtf.layers.temporal import Family, Maps, Place, Temporal, TemporalLayer, layer_maps, temporal_layers

__all__ = [
    "DTFBlock",
    "Family",
    "Maps",
    "Place",
    "Temporal",
    "TemporalLayer",
    "layer_maps",
    "temporal_layers",
]
