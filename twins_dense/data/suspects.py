"""Find annotations that are valid, but probably wrong: boxes of unlikely sizes and objects that are annotated twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco import CocoData, CocoImage, is_instance

OUTSIDE = 1.0  # pixels that a box may reach beyond its image, because of rounding
TINY_SIDE, TINY_AREA = 2.0, 16.0  # pixels
ENORMOUS = 0.95  # part of the image that a box covers
THIN = 20.0  # ratio of the sides
SAME = 0.95  # IoU of two boxes that mark the same object
OUTLIER = 4.5  # robust standard deviations from the median of the class
_MIN_OBJECTS = 20  # of a class, to tell what is unusual
_MIN_SPREAD = 0.1  # of logarithms, so that a class of nearly equal objects does not consist of outliers
_BORDER = 2.0  # pixels
_ROWS = 256  # of a matrix of IoUs that are computed at once

# Kinds of suspects, with what they mean.
KINDS = {
    "outside": f"The box reaches more than {OUTSIDE:g} pixel beyond the image.",
    "tiny": f"A side of the box is below {TINY_SIDE:g} pixels, or its area is below {TINY_AREA:g} square pixels.",
    "enormous": f"The box covers more than {100 * ENORMOUS:.0f} % of the image.",
    "thin": f"The longer side of the box is more than {THIN:g} times the shorter one.",
    "annotated twice": f"Two boxes of the same class have an IoU of {SAME} or more.",
    "two classes": f"Two boxes of different classes have an IoU of {SAME} or more.",
    "unusual size": (
        f"The part of the image that the box covers is far from that of other objects of the class (more than "
        f"{OUTLIER:g} robust standard deviations on a logarithmic scale)."
    ),
    "unusual shape": (
        f"The ratio of width and height is far from that of other objects of the class (more than {OUTLIER:g} robust "
        f"standard deviations on a logarithmic scale)."
    ),
}


@dataclass(frozen=True)
class Suspect:
    """An annotation that is probably wrong.

    Attributes:
        kind: One of `KINDS`.
        image: The image.
        annotation: The annotation.
        detail: What was found, such as "1.5x30 pixels".
        strength: Number that orders suspects of the same kind; the largest one is the most suspicious.
        other: For objects that are annotated twice, the earlier annotation.
    """

    kind: str
    image: CocoImage
    annotation: dict[str, Any]
    detail: str
    strength: float
    other: dict[str, Any] | None = None


def find_suspects(data: CocoData) -> list[Suspect]:
    """Return the suspicious annotations by kind, in the order of `KINDS`, the most suspicious first.

    Crowd regions are left out. An annotation has at most one suspect per kind.
    """
    found = [suspect for image in data.images for suspect in _suspects_of(image)]
    found += _outliers(data)
    order = list(KINDS)
    return sorted(found, key=lambda it: (order.index(it.kind), -it.strength, it.image.path, it.annotation["id"]))


def _suspects_of(image: CocoImage) -> Iterator[Suspect]:
    """Yield the suspects among the annotations of one image that need no other image."""
    instances = [annotation for annotation in image.annotations if is_instance(annotation)]
    for annotation in instances:
        x, y, width, height = annotation["bbox"]
        size = f"{width:.4g}x{height:.4g} pixels"
        beyond = max(-x, -y, x + width - image.width, y + height - image.height)
        inside = max(0, min(x + width, image.width) - max(x, 0)) * max(0, min(y + height, image.height) - max(y, 0))
        covered, ratio = inside / (image.width * image.height), max(width, height) / min(width, height)
        if beyond > OUTSIDE:
            yield Suspect("outside", image, annotation, f"reaches {beyond:.4g} pixels beyond the image", beyond)
        if min(width, height) < TINY_SIDE or width * height < TINY_AREA:
            yield Suspect("tiny", image, annotation, size, -width * height)
        if covered > ENORMOUS:
            yield Suspect("enormous", image, annotation, f"covers {100 * covered:.0f} % of the image", covered)
        if ratio > THIN:
            yield Suspect("thin", image, annotation, f"{size}, a ratio of {ratio:.0f}", ratio)
    yield from _repeated(image, instances)


def _repeated(image: CocoImage, instances: Sequence[dict[str, Any]]) -> Iterator[Suspect]:
    """Yield each object that has nearly the box of an earlier one, at most once per kind."""
    boxes = corners(instances)
    classes = np.array([annotation["category_id"] for annotation in instances])
    for start in range(0, len(boxes), _ROWS):
        ious = _ious(boxes[start : start + _ROWS], boxes)
        ious[np.arange(len(boxes)) >= np.arange(start, start + len(ious))[:, None]] = 0  # only earlier ones
        same_class = classes[start : start + _ROWS, None] == classes
        for kind, allowed in (("annotated twice", same_class), ("two classes", ~same_class)):
            masked = np.where(allowed, ious, 0)
            for row in np.flatnonzero((masked >= SAME).any(axis=1)).tolist():
                column = int(masked[row].argmax())
                iou, other = float(masked[row, column]), instances[column]
                detail = f"IoU {iou:.2f} with annotation {other['id']}"
                yield Suspect(kind, image, instances[start + row], detail, iou, other)


def corners(annotations: Iterable[dict[str, Any]]) -> np.ndarray:
    """Return the boxes of annotations as x1, y1, x2, y2 in pixels, float64 (N, 4)."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO stores boxes as x, y, width, height
    return boxes


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of each box of `a` (N, 4) with each box of `b` (M, 4), (N, M)."""
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    common = sides.clip(0).prod(axis=2)
    return common / ((a[:, None, 2:] - a[:, None, :2]).prod(axis=2) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common)


def _outliers(data: CocoData) -> Iterator[Suspect]:
    """Yield the objects whose size or shape is far from the median of their class.

    Objects that touch the border of the image are left out, because it may cut them to any size and shape.
    """
    pairs = [(image, annotation) for image in data.images for annotation in filter(is_instance, image.annotations)]
    whole = [(image, annotation) for image, annotation in pairs if not _touches_border(image, annotation["bbox"])]
    classes = np.array([annotation["category_id"] for _, annotation in whole])
    sides = np.array([annotation["bbox"][2:] for _, annotation in whole], dtype=np.float64).reshape(-1, 2)
    areas = np.array([image.width * image.height for image, _ in whole])
    for kind, name, values in (
        ("unusual size", "side", np.log(sides.prod(axis=1) / areas) / 2),
        ("unusual shape", "width / height", np.log(sides[:, 0] / sides[:, 1])),
    ):
        for category in np.unique(classes):
            members = np.flatnonzero(classes == category)
            if len(members) < _MIN_OBJECTS:
                continue
            median = np.median(values[members])
            spread = max(1.4826 * np.median(np.abs(values[members] - median)), _MIN_SPREAD)  # of a normal distribution
            distances = np.abs(values[members] - median) / spread
            for index, distance in zip(members.tolist(), distances.tolist(), strict=True):
                if distance > OUTLIER:
                    times = float(np.exp(values[index] - median))
                    yield Suspect(kind, *whole[index], f"{name} is {times:.2g} times the median of the class", distance)


def _touches_border(image: CocoImage, box: Sequence[float]) -> bool:
    x, y, width, height = box
    return min(x, y, image.width - x - width, image.height - y - height) < _BORDER
