"""SIFA-Net (ResNet) and SIFA-Transformer (Swin): backbones whose pixels attend to the next frame.

Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
Differences from the released code: those of :mod:`dtf.layers.sifa`; parameters that it declares and never
uses (in each Swin block either the norm or the convolution over time) do not exist. `sifa_tiny` is our own:
every bottleneck attends, by softmax and without offsets, and it has one branch.
"""

from dtf.layers.sifa import SIFA
from dtf.models.dual_resnet import DUAL_RESNET
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, RESNETS, TINY
from dtf.models.swin import SWIN, SWINS
from dtf.models.weights.convert import sifa as _conversion  # noqa: F401 (registers it)

# To learn in a few hundred steps its blocks do not start as the identity, as those of the released networks
# do, and its weights sum to 1: what is found by products is of the third power in fresh features, and up to
# a hundred times as large.
register_model(
    "sifa_tiny",
    RESNET,
    SIFA,
    fixed={"block": "bottleneck"},
    pocket=True,
    **TINY,
    deform=False,
    attention="softmax",
    first_stage=0,
    every=1,
)
for depth in ("50", "101"):
    fixed, own, weights = RESNETS[depth]
    register_model(
        f"sifa_resnet{depth}", DUAL_RESNET, SIFA, fixed=fixed, published=weights, **own, global_context=True
    )
for size in ("small", "base", "large"):
    own, weights = SWINS[size]
    register_model(
        f"sifa_swin_{size}",
        SWIN,
        SIFA,
        fixed={"every": 1, "global_context": False},
        published=weights,
        **own,
        deform=False,
        first_stage=0,
    )
