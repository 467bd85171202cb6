"""Prediction on single images with trained detectors and segmentors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

from ...data.drawing import draw_classes, draw_instances, draw_legend
from ...evaluation.coco import named_detections
from ..prediction import DetectionPrediction, SegmentationPrediction
from .config import test_part
from .runner import load_model


class DetectionPredictor:
    """A trained detector that is called on one image at a time.

    Args:
        config: From `load_config`.
        checkpoint: Checkpoint from a training run of the config.
        score: Threshold below which detections are dropped.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    legend: np.ndarray | None = None

    def __init__(self, config: Config, checkpoint: str | Path, score: float) -> None:
        self.model, self.meta = load_model(config, checkpoint)
        self.model.set_score_threshold(score)  # type: ignore[operator]

    def __call__(self, image: np.ndarray) -> DetectionPrediction:
        """Run the detector on a uint8 RGB (H, W, 3) image; the picture shows boxes, masks, names and scores."""
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        height, width = image.shape[:2]
        sample = BaseDataElement(metainfo={"image_id": 0, "height": height, "width": width})
        with torch.inference_mode():
            (found,) = self.model.val_step({"inputs": [tensor], "data_samples": [sample]})  # type: ignore[operator]
        classes = self.meta["classes"]
        picture = draw_instances(
            image, found.boxes, found.labels, classes, scores=found.scores, masks=found.get("masks")
        )
        detections = named_detections(dict(found.items()), self.meta["category_ids"], classes)
        return DetectionPrediction(picture, detections)


class SegmentationPredictor:
    """A trained segmentor that is called on one image at a time.

    Images are prepared like the test data of the config.

    Args:
        config: From `load_config`.
        checkpoint: Checkpoint from a training run of the config, or a published segmentor.

    Attributes:
        legend: Picture with the colour, the name and the label value of each class, uint8 RGB.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    def __init__(self, config: Config, checkpoint: str | Path) -> None:
        self.model, meta = load_model(config, checkpoint)
        dataset = test_part(config, "dataloader").dataset
        # `lazy_init` gives access to the classes without reading any files.
        self.meta = {**DATASETS.build({**dataset, "lazy_init": True}).metainfo, **meta}
        steps = [step for step in dataset.pipeline if not step["type"].startswith("Load")]
        self.prepare = Compose([{"type": "LoadImageFromNDArray"}, *steps])
        self.first_value = 1 if self.meta["reduce_zero_label"] else 0
        self.legend = draw_legend(self.meta["classes"], self.meta["palette"], self.first_value)

    def __call__(self, image: np.ndarray) -> SegmentationPrediction:
        """Segment a uint8 RGB (H, W, 3) image."""
        sample = self.prepare({"img": np.ascontiguousarray(image[:, :, ::-1])})  # mmseg's pipelines expect BGR
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        with torch.inference_mode():
            (found,) = self.model.test_step(batch)  # type: ignore[operator]
        classes = found.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        counts = np.bincount(classes.ravel(), minlength=len(self.meta["classes"]))
        shares = {name: count / classes.size for name, count in zip(self.meta["classes"], counts.tolist(), strict=True)}
        found_shares = {name: share for name, share in shares.items() if share > 0}
        picture = draw_classes(image, classes, self.meta["palette"])
        return SegmentationPrediction(picture, (classes + self.first_value).astype(np.uint8), found_shares)


def load_predictor(config: Config, checkpoint: str | Path, score: float) -> DetectionPredictor | SegmentationPredictor:
    """Load a trained model for prediction on single images; `score` is the score threshold for detectors."""
    if config.get("default_scope") == "mmseg":
        return SegmentationPredictor(config, checkpoint)
    return DetectionPredictor(config, checkpoint, score)
