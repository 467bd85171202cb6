"""The interface of the predictors of both frameworks, and the types that they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class DetectionPrediction(NamedTuple):
    """The detections in an image of H x W pixels.

    Attributes:
        picture: The image with the detections drawn on it, uint8 RGB (H, W, 3).
        detections: Entries as in a COCO results file, with `category` (the name of the class) instead of `image_id`.
    """

    picture: np.ndarray
    detections: list[dict[str, Any]]


class SegmentationPrediction(NamedTuple):
    """The segmentation of an image of H x W pixels.

    Attributes:
        picture: The image tinted with the colours of the classes, uint8 RGB (H, W, 3).
        labels: The class of each pixel, numbered as in the label maps of the data set, uint8 (H, W).
        shares: The fraction of the pixels that each predicted class covers, by class name.
    """

    picture: np.ndarray
    labels: np.ndarray
    shares: dict[str, float]


def named_detections(
    fields: Mapping[str, Any], category_ids: Sequence[int], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the detections of an image as `DetectionPrediction` lists them.

    Args:
        fields: `boxes`, `scores`, `labels` and, optionally, `masks`, as `coco_detections` takes them.
        category_ids: Category id of each label.
        classes: Name of each label.
    """
    from ..evaluation.coco import coco_detections  # here, because it needs pycocotools, and configs do not

    detections = coco_detections({**fields, "image_id": 0}, category_ids)
    for detection, label in zip(detections, fields["labels"].tolist(), strict=True):
        del detection["image_id"]
        detection["category"] = classes[label]
    return detections


class Predictor(Protocol):
    """A trained model that is called on one image at a time.

    Attributes:
        legend: For segmentors, a uint8 RGB picture of the colours, names and label values of the classes; else `None`.
    """

    @property
    def legend(self) -> np.ndarray | None: ...

    def __call__(self, image: np.ndarray) -> DetectionPrediction | SegmentationPrediction:
        """Run the model on a uint8 RGB (H, W, 3) image."""
