"""SIFA-Net in pocket size: a ResNet of bottlenecks whose pixels attend to the next frame.

Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
Difference from the released networks: every block of the last three stages attends, not every other one.
"""

import dataclasses
import functools

from dtf.layers.sifa import SIFA
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, TINY, build_resnet

# Every block starts as the identity, as in the released networks.
_RESNET = dataclasses.replace(RESNET, build=functools.partial(build_resnet, zero_init_last=True))

register_model("sifa_tiny", _RESNET, SIFA, fixed={"block": "bottleneck"}, pocket=True, every=1, **TINY)
