"""Twins backbones (PCPVT and SVT, arXiv 2104.13840) for dense prediction."""

from .backbone import TwinsBackbone, create_backbone
from .classifier import TwinsClassifier, create_classifier
from .errors import TwinsError
from .features import open_features
from .pyramid import PyramidSpec
from .spec import StageSpec, TwinsSpec, get_spec, list_variants
from .weights import LoadReport, convert_state_dict, load_segmentor, load_weights

__version__ = "0.1.0"

__all__ = [
    "LoadReport",
    "PyramidSpec",
    "StageSpec",
    "TwinsBackbone",
    "TwinsClassifier",
    "TwinsError",
    "TwinsSpec",
    "convert_state_dict",
    "create_backbone",
    "create_classifier",
    "get_spec",
    "list_variants",
    "load_segmentor",
    "load_weights",
    "open_features",
]
