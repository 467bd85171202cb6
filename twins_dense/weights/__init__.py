"""Reading checkpoints safely and loading them strictly."""

from .load import LoadReport, load_weights, read_checkpoint, read_state_dict

__all__ = ["LoadReport", "load_weights", "read_checkpoint", "read_state_dict"]
