"""What the predictors of both engines hand to the command line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """What a model says of one image of H x W pixels.

    Attributes:
        found: of a detector: detections as in a COCO results file, with `category` (the class's name) instead of
            `image_id`. Of a segmentor: by class, the share of the pixels.
        picture: uint8 RGB (H, W, 3): the image with what was found drawn on it.
        labels: of a segmentor: uint8 (H, W), a class a pixel, with the values that the data set's labels have.
    """

    found: list[dict[str, Any]] | dict[str, float]
    picture: np.ndarray
    labels: np.ndarray | None = None
