"""MMEngine's Runner as this package uses it: checked configs, safe checkpoints, exact resuming."""

from .config import default_work_dir, load_config, set_data_root, set_skip_bad
from .predictor import load_predictor
from .runner import evaluate, train

__all__ = ["default_work_dir", "evaluate", "load_config", "load_predictor", "set_data_root", "set_skip_bad", "train"]
