"""MMEngine's Runner as this package uses it: checked configs, safe checkpoints, exact resuming."""

from . import iterations  # noqa: F401  (registers)
from .config import load_config, set_data_root, set_skip_bad
from .predictor import load_predictor
from .runner import evaluate, train

__all__ = ["evaluate", "load_config", "load_predictor", "set_data_root", "set_skip_bad", "train"]
