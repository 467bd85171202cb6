"""Start the training of a detector or segmentor from a checkpoint for other classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ...errors import TwinsError
from ...weights.download import fetch_weights
from ...weights.keymap import convert, unwrap
from ...weights.read import read_checkpoint
from ..transfer import TransferReport, fit_transfer
from .checkpoints import dataset_meta, silent_log
from .config import building, is_segmentor, without_initial_weights

# The layers with one output per class: torchvision's Mask R-CNN and RetinaNet, and mmsegmentation's heads.
_HEADS = (
    r"detector\.roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(weight|bias)",
    r"detector\.roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)",
    r"detector\.head\.classification_head\.cls_logits\.(weight|bias)",
    r"(decode_head|auxiliary_head)\.conv_seg\.(weight|bias)",
)


def read_for_transfer(
    config: Config, path: str | Path, metainfo: Mapping[str, Any]
) -> tuple[dict[str, Any], TransferReport]:
    """Read a checkpoint of a whole model for other classes, see `fit_transfer`.

    Args:
        config: From `load_config`.
        path: Path of a checkpoint from a training run, or a published segmentor or its catalog name.
        metainfo: Meta information of the training data; heads are loaded only if it has the classes of the checkpoint.

    Returns:
        The entries to load, without those that start afresh, and the report.

    Raises:
        TwinsError: if the file cannot be read, or differs from the model in more than its heads.
    """
    with building(config), silent_log():
        model: Any = MODELS.build(without_initial_weights(config).model)
    checkpoint = read_checkpoint(fetch_weights(path))
    state = _segmentor_state(checkpoint, path) if is_segmentor(config) else _detector_state(checkpoint, path)
    classes = dataset_meta(checkpoint.get("meta") or {}).get("classes") or ()
    same_classes = list(classes) == list(metainfo["classes"])
    fitted, report = fit_transfer(state, model.state_dict(), _HEADS, source=str(path), same_classes=same_classes)
    return {name: fitted[name] for name in report.loaded}, report


def _detector_state(checkpoint: Any, path: str | Path) -> Mapping[str, Any]:
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise TwinsError(f"checkpoint {str(path)!r} is not from a training run of a detector: init needs one")
    return checkpoint["state_dict"]


def _segmentor_state(checkpoint: Any, path: str | Path) -> Mapping[str, Any]:
    try:
        return convert(unwrap(checkpoint), to="official", task="segmentor").state
    except TwinsError as error:
        raise TwinsError(f"checkpoint {str(path)!r}: {error}") from None
