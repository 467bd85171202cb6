"""Reading checkpoints safely and loading them strictly."""

from .load import LoadReport, describe_misfit, load_weights, read_checkpoint, read_state_dict

__all__ = ["LoadReport", "describe_misfit", "load_weights", "read_checkpoint", "read_state_dict"]
