"""detectron2's trainer as this package uses it: checked configs and data, exact resuming.

What config files name stands here too: `coco_dataset`, `build_train_loader`, `multi_step_lr`.
"""

from ...errors import TwinsError

try:
    from ...integrations import detectron2 as _adapter  # noqa: F401  (says how to install what is missing)
except ImportError as error:
    raise TwinsError(str(error)) from None

from .config import default_work_dir, load_config, multi_step_lr, set_amp, set_data_root, set_skip_bad, set_tta
from .data import build_train_loader, coco_dataset
from .predictor import load_predictor
from .trainer import check_data, evaluate, train

__all__ = [
    "build_train_loader",
    "check_data",
    "coco_dataset",
    "default_work_dir",
    "evaluate",
    "load_config",
    "load_predictor",
    "multi_step_lr",
    "set_amp",
    "set_data_root",
    "set_skip_bad",
    "set_tta",
    "train",
]
