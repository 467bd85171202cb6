"""Detect on single images with a trained config, or segment them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from ...data.coco_metric import coco_detections
from ...data.draw import draw_instances
from ..prediction import Prediction
from .runner import load_model
from .segmentation import SegmentationPredictor


class DetectionPredictor:
    """Calls a trained detector on one image at a time.

    Args:
        config: from `load_config`.
        checkpoint: of a training run of the config.
        score: detections that score less are dropped.

    Raises:
        TwinsError: where the config or the checkpoint can't be used.
    """

    def __init__(self, config: Config, checkpoint: str | Path, score: float) -> None:
        self.model, self.meta = load_model(config, checkpoint)
        self.model.set_score_threshold(score)  # type: ignore[operator]

    def __call__(self, image: np.ndarray) -> Prediction:
        """Detect on a uint8 RGB (H, W, 3) image; the picture has boxes, masks, names and scores."""
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        height, width = image.shape[:2]
        sample = BaseDataElement(metainfo={"image_id": 0, "height": height, "width": width})
        with torch.inference_mode():
            (found,) = self.model.val_step({"inputs": [tensor], "data_samples": [sample]})  # type: ignore[operator]
        classes = self.meta["classes"]
        drawn = draw_instances(
            tensor, found.boxes, found.labels, classes, scores=found.scores, masks=found.get("masks")
        )
        detections = coco_detections({**dict(found.items()), "image_id": 0}, self.meta["category_ids"])
        for detection, label in zip(detections, found.labels.tolist(), strict=True):
            del detection["image_id"]
            detection["category"] = classes[label]
        return Prediction(detections, drawn.permute(1, 2, 0).numpy())


def load_predictor(config: Config, checkpoint: str | Path, score: float) -> DetectionPredictor | SegmentationPredictor:
    """What `twins-dense predict` calls on each image; `score` is for detectors."""
    if config.get("default_scope") == "mmseg":
        return SegmentationPredictor(config, checkpoint)
    return DetectionPredictor(config, checkpoint, score)
