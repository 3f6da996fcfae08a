"""TAda: convolutions whose kernel is calibrated for each frame, and the family's part in networks.

Source: Huang et al., "TAda! Temporally-Adaptive Convolutions for Video Understanding", ICLR 2022 (arXiv
2110.06178), and "Temporally-Adaptive Models for Efficient Video Understanding" (arXiv 2308.05787), V2.
Parameters have the names of the released code, so that its weights load.

The kernel of frame t is ``alpha_t * W``: one W for all frames, alpha_t a number for each input channel
(``cin``) or output channel (``cout``), the same in all places. Therefore a calibrated convolution is one
ordinary convolution of frames whose channels were scaled before, or whose result is scaled after it; no
kernel is made for a frame.

Letters: B clips, C channels, T frames, H x W pixels, k sides of a kernel.
"""

from dtf.layers.tada.convolutions import TAdaConv2d, TAdaConv2dV2, TAdaConv3d
from dtf.layers.tada.family import (
    TADA,
    AttentionRoutedConv2d,
    PooledNorm,
    RoutedConv2d,
    TAdaAdapter,
    TAdaOptions,
)
from dtf.layers.tada.foreign import to_tada
from dtf.layers.tada.frames import mean_of_neighbours
from dtf.layers.tada.routing import RouteFuncMLP, RouteFuncTransformer

__all__ = [
    "TADA",
    "AttentionRoutedConv2d",
    "PooledNorm",
    "RouteFuncMLP",
    "RouteFuncTransformer",
    "RoutedConv2d",
    "TAdaAdapter",
    "TAdaConv2d",
    "TAdaConv2dV2",
    "TAdaConv3d",
    "TAdaOptions",
    "mean_of_neighbours",
    "to_tada",
]
