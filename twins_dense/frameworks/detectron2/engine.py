"""The `Engine` interface for detectron2's trainer."""

from ...errors import TwinsError

try:
    from . import backbone as _adapter  # noqa: F401  (the error explains how to install detectron2)
except ImportError as error:
    raise TwinsError(str(error)) from None

from .checks import check_data
from .config import default_work_dir, load_config, set_amp, set_data_root, set_skip_bad, set_tta
from .evaluation import evaluate
from .predictors import load_predictor
from .settings import set_data, set_training
from .trainer import train

__all__ = [
    "check_data",
    "default_work_dir",
    "evaluate",
    "load_config",
    "load_predictor",
    "set_amp",
    "set_data",
    "set_data_root",
    "set_skip_bad",
    "set_training",
    "set_tta",
    "train",
]
