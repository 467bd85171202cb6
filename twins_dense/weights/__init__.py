"""Reading checkpoints safely, converting their names, and loading them strictly."""

from .keymap import convert_state_dict
from .load import LoadReport, describe_misfit, load_weights
from .read import read_checkpoint

__all__ = ["LoadReport", "convert_state_dict", "describe_misfit", "load_weights", "read_checkpoint"]
