"""Start the training of a detector from a checkpoint for other classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..transfer import fit_transfer
from .backbone import logger
from .checks import read_detector

# The layers with one output per class: Mask R-CNN's (and those of a cascade), then RetinaNet's.
_HEADS = (
    r"roi_heads\.box_predictor(\.\d+)?\.(cls_score|bbox_pred)\.(weight|bias)",
    r"roi_heads\.mask_head\.predictor\.(weight|bias)",
    r"head\.cls_score\.(weight|bias)",
)


def load_for_transfer(model: nn.Module, path: str, classes: Sequence[str]) -> None:
    """Load a checkpoint of the same detector for other classes, see `fit_transfer`, and log what starts afresh.

    Args:
        model: The detector.
        path: Path of a detectron2 checkpoint.
        classes: Classes of the training data; heads are loaded only if the checkpoint has the same ones.

    Raises:
        TwinsError: if the file cannot be read, or differs from the model in more than its heads.
    """
    content = read_detector(path)
    same_classes = list(content.get("dataset_meta", {}).get("classes", ())) == list(classes)
    state, report = fit_transfer(content["model"], model.state_dict(), _HEADS, source=path, same_classes=same_classes)
    model.load_state_dict(state)
    logger.info(f"Start from {report}")
