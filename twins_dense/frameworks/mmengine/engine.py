"""The `Engine` interface for MMEngine's Runner."""

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
from .export import exportable
from .monitoring import set_monitoring
from .predictors import predictor
from .runner import check_data, evaluate, train
from .settings import set_data, set_training
from .stored import from_data, to_data

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
