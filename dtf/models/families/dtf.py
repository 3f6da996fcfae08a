"""DTF-Net (ResNet) and DTF-Transformer (Swin): backbones with dynamic temporal filters.

Source: Long et al., "Dynamic Temporal Filtering in Video Models", ECCV 2022 (arXiv 2211.08252).
Differences from the released code: basic blocks (ResNet-18) are supported, with a filter after each of
their two 3x3 convolutions; parameters that it declares and never calls (in Swin a 1x3 convolution per block
and filters in shifted blocks) do not exist.
"""

from dtf.layers.dtf import DTF
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, RESNETS, TINY
from dtf.models.swin import SWIN, SWINS
from dtf.models.weights.convert import dtf as _conversion  # noqa: F401 (registers it)

register_model("dtf_tiny", RESNET, DTF, fixed={"block": "basic"}, pocket=True, **TINY)
for depth, (fixed, own, weights) in RESNETS.items():
    register_model(f"dtf_resnet{depth}", RESNET, DTF, fixed=fixed, published=weights, **own)
for size, (own, weights) in SWINS.items():
    register_model(f"dtf_swin_{size}", SWIN, DTF, published=weights, **own)
