"""Prediction on single images with a trained detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data.transforms import AugInput
from omegaconf import DictConfig

from ...data.drawing import draw_instances
from ...evaluation.coco import named_detections
from ..prediction import DetectionPrediction
from .trainer import dataset_meta_of, dataset_name_of, load_model


class DetectionPredictor:
    """A trained detector that is called on one image at a time.

    Images are resized like the test data of the config.

    Args:
        config: From `load_config`.
        checkpoint: A detectron2 checkpoint for the model of the config.
        score: Threshold below which detections are dropped.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    legend: np.ndarray | None = None

    def __init__(self, config: DictConfig, checkpoint: str | Path, score: float) -> None:
        self.model, content = load_model(config, checkpoint)
        # Drop detections before their masks are computed, which take most of the memory for photos.
        heads: Any = getattr(self.model, "roi_heads", self.model)
        getattr(heads, "box_predictor", heads).test_score_thresh = score
        self.mapper = instantiate(config.dataloader.test.mapper)
        name = dataset_name_of(config.dataloader.test)
        meta = content.get("dataset_meta") or dataset_meta_of(name)  # checkpoints from detectron2's own tools lack it
        self.classes = meta["classes"] or [str(label) for label in range(heads.num_classes)]
        self.category_ids = meta["category_ids"] or list(range(heads.num_classes))

    def __call__(self, image: np.ndarray) -> DetectionPrediction:
        """Run the detector on a uint8 RGB (H, W, 3) image."""
        height, width = image.shape[:2]
        resized = AugInput(image if self.mapper.image_format == "RGB" else image[:, :, ::-1])
        self.mapper.augmentations(resized)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        with torch.inference_mode():
            (output,) = self.model([{"image": tensor, "height": height, "width": width}])
        found = output["instances"].to("cpu")
        fields = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes}
        if found.has("pred_masks"):
            fields["masks"] = found.pred_masks
        detections = named_detections(fields, self.category_ids, self.classes)
        picture = draw_instances(
            image,
            fields["boxes"],
            fields["labels"],
            self.classes,
            scores=fields["scores"],
            masks=fields.get("masks"),
        )
        return DetectionPrediction(picture, detections)


def load_predictor(config: DictConfig, checkpoint: str | Path, score: float) -> DetectionPredictor:
    """Load a trained model for prediction on single images; `score` is the score threshold."""
    return DetectionPredictor(config, checkpoint, score)
