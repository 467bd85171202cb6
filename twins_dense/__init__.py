"""Twins backbones (PCPVT and SVT, arXiv 2104.13840) for dense prediction.

The names below are imported on first use, so that `import twins_dense` itself is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import TwinsError
    from .factory import create_backbone, create_classifier, load_backbone
    from .features import open_features
    from .inference.export import export_model
    from .inference.load import load_model
    from .inference.results import Classification, Detections, Segmentation
    from .models.backbone import TwinsBackbone
    from .models.classifier import TwinsClassifier
    from .models.spec import PyramidSpec, StageSpec, TwinsSpec, get_spec, list_variants
    from .weights.keymap import convert_state_dict
    from .weights.load import LoadReport, load_segmentor, load_weights

__version__ = "0.1.0"

__all__ = [
    "Classification",
    "Detections",
    "LoadReport",
    "PyramidSpec",
    "Segmentation",
    "StageSpec",
    "TwinsBackbone",
    "TwinsClassifier",
    "TwinsError",
    "TwinsSpec",
    "convert_state_dict",
    "create_backbone",
    "create_classifier",
    "export_model",
    "get_spec",
    "list_variants",
    "load_backbone",
    "load_model",
    "load_segmentor",
    "load_weights",
    "open_features",
]

_MODULES = {
    "errors": ("TwinsError",),
    "factory": ("create_backbone", "create_classifier", "load_backbone"),
    "features": ("open_features",),
    "inference.export": ("export_model",),
    "inference.load": ("load_model",),
    "inference.results": ("Classification", "Detections", "Segmentation"),
    "models.backbone": ("TwinsBackbone",),
    "models.classifier": ("TwinsClassifier",),
    "models.spec": ("PyramidSpec", "StageSpec", "TwinsSpec", "get_spec", "list_variants"),
    "weights.keymap": ("convert_state_dict",),
    "weights.load": ("LoadReport", "load_segmentor", "load_weights"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
