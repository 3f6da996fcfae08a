"""DDF-ResNet: ResNets whose 3x3 convolutions are decoupled dynamic filters, of images and frame by frame.

Source: Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021 (arXiv 2104.14107). Differences from the
released code: with a stride, sizes that it does not divide are rounded up as by the convolution (the released
code takes none); clips of more than one frame are our own use of it.
"""

import dataclasses
import functools

from dtf.layers.ddf import DDF
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, TINY, build_resnet
from dtf.models.weights.convert import ddf as _conversion  # noqa: F401 (registers it)

# Every block starts as the identity. No frames are joined, so that an image network has a plain stem.
_RESNET = dataclasses.replace(RESNET, build=functools.partial(build_resnet, zero_init_last=True))
_LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

register_model("ddf_tiny", _RESNET, DDF, fixed={"block": "bottleneck"}, pocket=True, **TINY)
for combine, depths in (("mul", (50, 101, 152)), ("add", (50, 101))):
    for depth in depths:
        register_model(
            f"ddf_{combine}_resnet{depth}",
            _RESNET,
            DDF,
            fixed={"block": "bottleneck", "stem_width": None, "combine": combine},
            layers=_LAYERS[depth],
            image=True,
            temporal_stride=1,
            dropout=0.0,
        )
