"""Reading checkpoints safely, converting their names, and loading them strictly."""

from .download import find_weights
from .keymap import convert_state_dict
from .load import LoadReport, describe_misfit, fit_segmentor, load_segmentor, load_weights
from .read import read_checkpoint

__all__ = [
    "LoadReport",
    "convert_state_dict",
    "describe_misfit",
    "find_weights",
    "fit_segmentor",
    "load_segmentor",
    "load_weights",
    "read_checkpoint",
]
