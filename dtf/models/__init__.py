"""Video networks: backbones that carry temporal layers, construction by name, weights."""

from dtf.layers.dtf import DTFBlock
from dtf.layers.temporal import layer_maps
from dtf.models import bare_timm as _bare_timm  # noqa: F401 (before all that imports timm)
from dtf.models import families as _families  # noqa: F401 (registers networks)
from dtf.models import pytorchvideo as _pytorchvideo  # noqa: F401
from dtf.models.network import VideoNetwork
from dtf.models.registry import create_model, list_models, register_model
from dtf.models.weights import load_weights, save_weights
from dtf.models.weights.convert import ConversionReport, convert_original_state_dict

__all__ = [
    "ConversionReport",
    "DTFBlock",
    "VideoNetwork",
    "convert_original_state_dict",
    "create_model",
    "layer_maps",
    "list_models",
    "load_weights",
    "register_model",
    "save_weights",
]
