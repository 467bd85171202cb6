"""The `Engine` interface for detectron2's trainer."""

import warnings

from ...errors import TwinsError

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # detectron2 uses it
        from . import backbone as _adapter  # noqa: F401  (the error explains how to install detectron2)
except ImportError as error:
    raise TwinsError(str(error)) from None

from .checks import check_data
from .config import default_work_dir, load_config, set_amp, set_data_root, set_skip_bad, set_tta
from .evaluation import evaluate
from .monitoring import set_monitoring
from .predictors import load_predictor
from .trainer import train

__all__ = [
    "check_data",
    "default_work_dir",
    "evaluate",
    "load_config",
    "load_predictor",
    "set_amp",
    "set_data_root",
    "set_monitoring",
    "set_skip_bad",
    "set_tta",
    "train",
]
