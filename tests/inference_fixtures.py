"""Models without a network, which find coloured rectangles on black images exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from twins_dense.frameworks import OpenedCheckpoint
from twins_dense.frameworks.prediction import Instances, Masks
from twins_dense.inference.model import DetectionModel, SegmentationModel

CPU = torch.device("cpu")
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
CLASSES = ("red", "green", "blue")


class RectangleDetector:
    """A detector of connected areas of one colour; smaller areas have higher scores, so cut objects do as well."""

    task: Literal["detection"] = "detection"
    classes = CLASSES
    category_ids = (1, 2, 5)

    def __init__(self, *, with_masks: bool = True) -> None:
        self.with_masks = with_masks
        self.calls: list[tuple[int, tuple[int, ...], float]] = []  # number of images, their shape, and the scale

    def __call__(self, images: Sequence[np.ndarray], *, score: float, scale: float = 1.0) -> list[Instances]:
        assert len({image.shape for image in images}) == 1
        self.calls.append((len(images), images[0].shape, scale))
        return [self._find(image, score) for image in images]

    def _find(self, image: np.ndarray, score: float) -> Instances:
        boxes, scores, labels, masks = [], [], [], []
        for label in range(len(COLORS)):
            count, areas, stats, _ = cv2.connectedComponentsWithStats((image[:, :, label] > 127).astype(np.uint8))
            for number in range(1, count):
                x, y, width, height, area = stats[number].tolist()
                if 1 / (1 + area / 1000) < score:
                    continue
                boxes.append((x, y, x + width, y + height))
                scores.append(1 / (1 + area / 1000))
                labels.append(label)
                masks.append(areas == number)
        found = Masks.from_array(np.array(masks, dtype=bool).reshape(-1, *image.shape[:2]))
        return Instances(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(scores, dtype=np.float32),
            np.array(labels, dtype=np.int64),
            found if self.with_masks else None,
        )


class ColorSegmentor:
    """A segmentor whose logits are the colour channels, plus the row and the column in the image that it is given."""

    task: Literal["segmentation"] = "segmentation"
    classes = CLASSES
    palette = COLORS
    first_value = 1

    def __init__(self, *, positions: float = 0.0) -> None:
        self.positions = positions

    def __call__(self, images: Sequence[np.ndarray], *, scale: float = 1.0) -> list[Tensor]:
        return [self._logits(image) * scale for image in images]

    def _logits(self, image: np.ndarray) -> Tensor:
        rows, columns = torch.meshgrid(*map(torch.arange, image.shape[:2]), indexing="ij")
        return torch.from_numpy(image).permute(2, 0, 1).float() + self.positions * (rows + 2 * columns)


def detection_model(detector: Any = None) -> DetectionModel:
    checkpoint = OpenedCheckpoint(None, None, "rectangles")  # type: ignore[arg-type]
    return DetectionModel(checkpoint, detector or RectangleDetector(), CPU, "float32")


def segmentation_model(segmentor: Any = None) -> SegmentationModel:
    checkpoint = OpenedCheckpoint(None, None, "colours")  # type: ignore[arg-type]
    return SegmentationModel(checkpoint, segmentor or ColorSegmentor(), CPU, "float32")


def with_rectangles(height: int, width: int, rectangles: Sequence[tuple[int, int, int, int, int]]) -> np.ndarray:
    """Draw rectangles (label, x1, y1, x2, y2) on a black image."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for label, x1, y1, x2, y2 in rectangles:
        image[y1:y2, x1:x2] = COLORS[label]
    return image


def as_rectangles(found: Any) -> list[tuple[int, ...]]:
    """Return detections as sorted tuples (label, x1, y1, x2, y2)."""
    return sorted(
        (label, *map(round, box)) for label, box in zip(found.labels.tolist(), found.boxes.tolist(), strict=True)
    )
