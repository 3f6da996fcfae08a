"""Layers to lift out: modules on clips (B, C, T, H, W), a file or folder a family. They need torch alone."""

from dtf.layers.ddf import DDFPack, DDFUpPack, FilterNorm
from dtf.layers.dtf import DTFBlock
from dtf.layers.sifa import SIFABlock
from dtf.layers.tada import (
    RouteFuncMLP,
    RouteFuncTransformer,
    TAdaConv2d,
    TAdaConv2dV2,
    TAdaConv3d,
    to_tada,
)
from dtf.layers.temporal import (
    Family,
    Kernels,
    Looks,
    Maps,
    Place,
    Temporal,
    TemporalLayer,
    layer_maps,
    temporal_layers,
)

__all__ = [
    "DDFPack",
    "DDFUpPack",
    "DTFBlock",
    "Family",
    "FilterNorm",
    "Kernels",
    "Looks",
    "Maps",
    "Place",
    "RouteFuncMLP",
    "RouteFuncTransformer",
    "SIFABlock",
    "TAdaConv2d",
    "TAdaConv2dV2",
    "TAdaConv3d",
    "Temporal",
    "TemporalLayer",
    "layer_maps",
    "temporal_layers",
    "to_tada",
]
