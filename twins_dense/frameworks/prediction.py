"""The interface of the predictors of both frameworks, and the types that they return."""

from __future__ import annotations

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


class Predictor(Protocol):
    """A trained model that is called on one image at a time.

    Attributes:
        legend: For segmentors, a uint8 RGB picture of the colours, names and label values of the classes; else `None`.
    """

    @property
    def legend(self) -> np.ndarray | None: ...

    def __call__(self, image: np.ndarray) -> DetectionPrediction | SegmentationPrediction:
        """Run the model on a uint8 RGB (H, W, 3) image."""
