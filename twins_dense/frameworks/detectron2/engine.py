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
from .config import (
    apply_overrides,
    default_work_dir,
    load_config,
    set_allow_outside,
    set_amp,
    set_data_root,
    set_skip_bad,
    set_strict,
    set_tta,
    task_of,
    write_config,
)
from .evaluation import evaluate
from .export import exportable
from .monitoring import set_monitoring
from .predictors import predictor
from .settings import set_data, set_training
from .stored import from_data, to_data
from .trainer import train

__all__ = [
    "apply_overrides",
    "check_data",
    "default_work_dir",
    "evaluate",
    "exportable",
    "from_data",
    "load_config",
    "predictor",
    "set_allow_outside",
    "set_amp",
    "set_data",
    "set_data_root",
    "set_monitoring",
    "set_skip_bad",
    "set_strict",
    "set_training",
    "set_tta",
    "task_of",
    "to_data",
    "train",
    "write_config",
]
