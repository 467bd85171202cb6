"""What the predictors of both frameworks return for an image."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class DetectionPrediction(NamedTuple):
    """Detections on an image of H x W pixels.

    Attributes:
        picture: uint8 RGB (H, W, 3), the image with the detections drawn on it.
        detections: entries as in a COCO results file, with `category` (the name of the class) instead of `image_id`.
    """

    picture: np.ndarray
    detections: list[dict[str, Any]]


class SegmentationPrediction(NamedTuple):
    """The segmentation of an image of H x W pixels.

    Attributes:
        picture: uint8 RGB (H, W, 3), the image tinted with the colors of the classes.
        labels: uint8 (H, W), the class of each pixel, numbered as in the label maps of the data set.
        shares: the share of the pixels by class name, for the classes that appear.
    """

    picture: np.ndarray
    labels: np.ndarray
    shares: dict[str, float]


class Predictor(Protocol):
    """A trained model that is called on one image at a time.

    Attributes:
        legend: of a segmentor, a uint8 RGB picture of the colors, names and label values of the classes.
    """

    @property
    def legend(self) -> np.ndarray | None: ...

    def __call__(self, image: np.ndarray) -> DetectionPrediction | SegmentationPrediction:
        """Predict on a uint8 RGB (H, W, 3) image."""
