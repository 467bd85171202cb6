"""The interface between trained models of either framework and `inference`: raw results as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class MaskCrop(NamedTuple):
    """The part of an instance mask that holds its pixels.

    Attributes:
        top: First row of the part in the whole mask.
        left: First column of the part in the whole mask.
        pixels: bool (h, w).
    """

    top: int
    left: int
    pixels: np.ndarray


class Masks(Sequence[np.ndarray]):
    """The masks of the instances in one image, which are stored as crops, because whole masks would fill the memory.

    Indexing by a number returns one whole mask, bool (H, W).

    Args:
        crops: One crop per instance.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """

    def __init__(self, crops: Iterable[MaskCrop], height: int, width: int) -> None:
        self.crops = tuple(crops)
        self.height = height
        self.width = width

    @classmethod
    def from_array(cls, masks: np.ndarray) -> Masks:
        """Crop masks, bool (N, H, W)."""
        crops = []
        for mask in masks:
            top, bottom = _extent(mask.any(axis=1))
            left, right = _extent(mask.any(axis=0))
            crops.append(MaskCrop(top, left, mask[top:bottom, left:right].copy()))
        return cls(crops, *masks.shape[1:])

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # slices are left to `select`
        top, left, pixels = self.crops[index]
        mask = np.zeros((self.height, self.width), dtype=bool)
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return mask

    def select(self, indices: Iterable[int]) -> Masks:
        """Return the masks with these numbers."""
        return Masks((self.crops[i] for i in indices), self.height, self.width)

    def to_array(self) -> np.ndarray:
        """Return all masks, bool (N, H, W)."""
        return np.stack([*self]) if len(self) else np.zeros((0, self.height, self.width), dtype=bool)


@dataclass(frozen=True)
class Instances:
    """The objects that a detector found in an image.

    Attributes:
        boxes: float32 (N, 4), each x1, y1, x2, y2 in pixels.
        scores: float32 (N,) in 0..1.
        labels: int64 (N,) in 0..K-1.
        masks: The masks; `None` for detectors of boxes alone.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Masks | None = None

    @classmethod
    def from_tensors(cls, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor | None = None) -> Instances:
        """Convert tensors on any device; masks are bool (N, H, W)."""
        return cls(
            boxes.float().cpu().numpy(),
            scores.float().cpu().numpy(),
            labels.long().cpu().numpy(),
            None if masks is None else Masks.from_array(masks.cpu().numpy()),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, indices: np.ndarray) -> Instances:
        """Return the instances with these numbers, in this order."""
        masks = None if self.masks is None else self.masks.select(indices.tolist())
        return Instances(self.boxes[indices], self.scores[indices], self.labels[indices], masks)


class Detector(Protocol):
    """A trained detector.

    Attributes:
        task: The constant "detection".
        classes: Names of the classes, in the order of the labels.
        category_ids: Category id of each label in COCO files.
    """

    task: Literal["detection"]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __call__(self, images: Sequence[np.ndarray], *, score: float, scale: float = 1.0) -> list[Instances]:
        """Find the objects in images.

        Args:
            images: uint8 RGB (H, W, 3) each, all of one size.
            score: Threshold below which detections are dropped.
            scale: Factor of the size that images are resized to for the network. Results are in pixels of the given
                images.
        """


class Segmentor(Protocol):
    """A trained segmentor.

    Attributes:
        task: The constant "segmentation".
        classes: Names of the classes.
        palette: One (R, G, B) in 0..255 per class.
        first_value: Value of the first class in label maps, 0 or 1.
    """

    task: Literal["segmentation"]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    first_value: int

    def __call__(self, images: Sequence[np.ndarray], *, scale: float = 1.0) -> list[Tensor]:
        """Return the logits of each image, float (K, H, W) on the model's device.

        Args:
            images: uint8 RGB (H, W, 3) each, all of one size.
            scale: Factor of the size that images are resized to for the network.
        """


def _extent(present: np.ndarray) -> tuple[int, int]:
    """Return the first position that is true, and the one after the last; (0, 0) if there is none."""
    positions = np.flatnonzero(present)
    return (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
