"""Video networks: temporal filter blocks, the backbones they stand in, construction by name, checkpoints."""

from dtf.models import pytorchvideo as _pytorchvideo  # noqa: F401 (registers its networks)
from dtf.models import resnet as _resnet  # noqa: F401
from dtf.models import swin as _swin  # noqa: F401
from dtf.models.block import DTFBlock
from dtf.models.convert import ConversionReport, convert_original_state_dict
from dtf.models.network import VideoNetwork
from dtf.models.registry import create_model, list_models, register_model
from dtf.models.response import filter_responses
from dtf.models.weights import load_weights, save_weights

__all__ = [
    "ConversionReport",
    "DTFBlock",
    "VideoNetwork",
    "convert_original_state_dict",
    "create_model",
    "filter_responses",
    "list_models",
    "load_weights",
    "register_model",
    "save_weights",
]
