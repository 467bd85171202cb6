"""Trained detectors and segmentors in the form that can be exported."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ...deploy.exportable import Exportable
from ...errors import TwinsError
from .config import building
from .detectors import TorchvisionDetector
from .export_detection import exportable_detector
from .runner import load_model


def exportable(config: Config, checkpoint: str | Path) -> Exportable:
    """Load a trained model in the form that can be exported.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: Checkpoint from a training run of the config, or a published segmentor.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used, or the model has a part that cannot be exported.
    """
    if config.get("default_scope") == "mmseg":
        with building(config):  # mmseg is imported only for segmentors
            from .export_segmentation import exportable_segmentor

            return exportable_segmentor(config, checkpoint)
    model, meta = load_model(config, checkpoint)
    if not {"classes", "category_ids"} <= meta.keys():
        raise TwinsError(
            f"checkpoint {str(checkpoint)!r} does not name its classes: use a checkpoint of `twins-dense train`"
        )
    assert isinstance(model, TorchvisionDetector)
    return exportable_detector(model, meta)
