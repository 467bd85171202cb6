"""Trained detectors, which compute raw results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList, ResizeShortestEdge
from omegaconf import DictConfig

from ..checks import check_dataset_meta
from ..prediction import Instances
from .checks import dataset_meta_of, dataset_name_of
from .evaluation import load_model
from .guards import building


class DetectionPredictor:
    """A `Detector` on one of detectron2's detectors. Images are resized like the test data of the config.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: A detectron2 checkpoint for the model of the config.
        device: Device to run on.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    task: Literal["detection"] = "detection"

    def __init__(self, config: DictConfig, checkpoint: str | Path, device: torch.device) -> None:
        config.train.device = str(device)
        self.model, content = load_model(config, checkpoint)
        heads: Any = getattr(self.model, "roi_heads", self.model)
        self._thresholded = getattr(heads, "box_predictor", heads)
        self._mapper = instantiate(config.dataloader.test.mapper)
        # Checkpoints from detectron2's own tools lack the names.
        meta = content.get("dataset_meta") or dataset_meta_of(dataset_name_of(config.dataloader.test))
        check_dataset_meta(meta, checkpoint, heads.num_classes if meta["classes"] else None)
        self.classes = tuple(meta["classes"] or map(str, range(heads.num_classes)))
        self.category_ids = tuple(meta["category_ids"] or range(heads.num_classes))

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], *, score: float, scale: float = 1.0) -> list[Instances]:
        """Find the objects in images of one size (see `Detector`)."""
        # Drop detections before their masks are computed, which take most of the memory for photos.
        self._thresholded.test_score_thresh = score
        augmentations = AugmentationList([_scaled(step, scale) for step in self._mapper.augmentations.augs])
        inputs = []
        for image in images:
            resized = AugInput(image if self._mapper.image_format == "RGB" else image[:, :, ::-1])
            augmentations(resized)
            tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        found = [output["instances"] for output in self.model(inputs)]
        return [
            Instances.from_tensors(
                one.pred_boxes.tensor, one.scores, one.pred_classes, one.pred_masks if one.has("pred_masks") else None
            )
            for one in found
        ]


def predictor(config: DictConfig, checkpoint: str | Path, device: torch.device) -> DetectionPredictor:
    """Load a trained model that computes raw results."""
    with building(config):
        return DetectionPredictor(config, checkpoint, device)


def _scaled(step: Augmentation, scale: float) -> Augmentation:
    """Return an augmentation of the test data, or one that resizes to another size."""
    if scale == 1 or not isinstance(step, ResizeShortestEdge):
        return step
    sides = [round(side * scale) for side in step.short_edge_length]
    return ResizeShortestEdge(sides, round(step.max_size * scale), "choice")
