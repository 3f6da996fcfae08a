"""C2D: the backbones on folded frames without temporal layers, the control of every family."""

from dtf.models.convnext import CONVNEXT, CONVNEXTS
from dtf.models.registry import register_model
from dtf.models.resnet import RESNET, RESNETS, TINY
from dtf.models.swin import SWIN, SWINS
from dtf.models.vit import VIT, VITS

register_model("c2d_tiny", RESNET, fixed={"block": "basic"}, pocket=True, **TINY)
for depth, (fixed, own, weights) in RESNETS.items():
    register_model(f"c2d_resnet{depth}", RESNET, fixed=fixed, published=weights, **own)
for size, (own, weights) in SWINS.items():
    register_model(f"c2d_swin_{size}", SWIN, published=weights, **own)
for size, (own, weights) in CONVNEXTS.items():
    register_model(f"c2d_convnext_{size}", CONVNEXT, published=weights, **own)
for size, (own, weights) in VITS.items():
    register_model(f"c2d_vit_{size}", VIT, published=weights, **own)
