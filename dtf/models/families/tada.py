"""TAda: networks whose convolutions have kernels that are calibrated for each frame.

Sources: Huang et al., "TAda! Temporally-Adaptive Convolutions for Video Understanding", ICLR 2022 (arXiv
2110.06178): TAda2D, a ResNet; "Temporally-Adaptive Models for Efficient Video Understanding" (arXiv
2308.05787): TAdaConvNeXtV2 and TAdaFormer, a vision transformer. Differences from the released code: logits
in evaluation as well (the softmax stands outside); fresh kernels of TAda2D's convolutions are as large as
those of ordinary ones.
"""

import dataclasses
import functools

from dtf.layers.tada import TADA
from dtf.models.convnext import CONVNEXT, CONVNEXTS
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, RESNETS, TINY, build_resnet
from dtf.models.vit import VIT, VITS
from dtf.models.weights.convert import tada as _conversion  # noqa: F401 (registers it)

# The stem does not pool: the first stage halves the frames instead. No frames are joined.
_RESNET = dataclasses.replace(RESNET, build=functools.partial(build_resnet, first_stride=2))

# What the networks of a kind have in common of the family's options.
_IN_RESNET = {"routing": "mlp", "head_dim": 64, "over_time": False, "double": False}
_IN_CONVNEXT = {"routing": "attention", "over_time": False, "double": False}
_IN_VIT = {"routing": "attention", "temporal_pool": True}

register_model("tada_tiny", RESNET, TADA, fixed={"block": "basic", **_IN_RESNET}, pocket=True, **TINY)
for depth in ("50", "101"):
    fixed, own, weights = RESNETS[depth]
    fixed = {**fixed, **_IN_RESNET}
    register_model(
        f"tada2d_resnet{depth}", _RESNET, TADA, fixed=fixed, published=weights, **own, temporal_stride=1
    )
for size, (own, weights) in CONVNEXTS.items():
    register_model(
        f"tadaconvnextv2_{size}",
        CONVNEXT,
        TADA,
        fixed=_IN_CONVNEXT,
        published=weights,
        **own,
        routing_ratio=2,
        head_dim=64 if size == "base" else 48,
    )
for size, (own, weights) in VITS.items():
    register_model(f"tadaformer_{size}", VIT, TADA, fixed=_IN_VIT, published=weights, **own, routing_ratio=2)
