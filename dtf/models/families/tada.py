"""TAda2D: ResNets whose 3x3 convolutions have kernels that are calibrated for each frame.

Source: Huang et al., "TAda! Temporally-Adaptive Convolutions for Video Understanding", ICLR 2022 (arXiv
2110.06178). Differences from the released code: logits in evaluation as well (the softmax stands outside);
fresh kernels of calibrated convolutions are as large as those of ordinary ones.
"""

import dataclasses
import functools

from dtf.layers.tada import TADA
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, RESNETS, TINY, build_resnet
from dtf.models.weights.convert import tada as _conversion  # noqa: F401 (registers it)

# The stem does not pool: the first stage halves the frames instead. No frames are joined.
_RESNET = dataclasses.replace(RESNET, build=functools.partial(build_resnet, first_stride=2))

register_model("tada_tiny", RESNET, TADA, fixed={"block": "basic"}, pocket=True, **TINY)
for depth in ("50", "101"):
    fixed, own, weights = RESNETS[depth]
    register_model(
        f"tada2d_resnet{depth}", _RESNET, TADA, fixed=fixed, published=weights, **own, temporal_stride=1
    )
