"""The `Engine` interface for MMEngine's Runner."""

from .config import default_work_dir, load_config, set_amp, set_data_root, set_skip_bad, set_tta
from .monitoring import set_monitoring
from .predictors import load_predictor
from .runner import check_data, evaluate, train
from .settings import set_data, set_training

__all__ = [
    "check_data",
    "default_work_dir",
    "evaluate",
    "load_config",
    "load_predictor",
    "set_amp",
    "set_data",
    "set_data_root",
    "set_monitoring",
    "set_skip_bad",
    "set_training",
    "set_tta",
    "train",
]
