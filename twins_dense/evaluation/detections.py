"""Compute all numbers in the report of a detector from a record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import average_precisions, mean_average_precision
from .calibration import Calibration, calibration
from .coco import SIZE_LIMITS, coco_content, coco_evaluation
from .detection_errors import (
    ErrorCost,
    Suspect,
    classify_detections,
    confusion,
    error_costs,
    label_suspects,
    object_fates,
)
from .intervals import bootstrap_weights
from .matching import Matches, match_record
from .record import Record
from .thresholds import Thresholds, main_iou_type, recommend

SIZES = ("small", "medium", "large")
"""COCO's sizes of objects: below 32² pixels, below 96² pixels, and larger."""
CALIBRATION_FLOOR = 0.05
"""Detections with lower scores are left out of the calibration: they claim almost nothing, and there are many."""


@dataclass(frozen=True)
class Score:
    """A score of the whole data set.

    Attributes:
        name: Name, such as "mask AP".
        value: Value as a fraction; NaN if there are no objects.
        samples: (S,) values of the bootstrap samples, which are the same images for every evaluation of a data set.
    """

    name: str
    value: float
    samples: np.ndarray


@dataclass(frozen=True)
class DetectionAnalysis:
    """The analysis of a detector. Everything but `box_ap` is about masks, if the detector was evaluated with them.

    Letters: K classes, D detections, G objects, N images.

    Attributes:
        record: The record.
        matches: Detections, objects and matches.
        thresholds: Recommended score thresholds.
        kept: (D,) which detections reach them.
        scores: The three scores that matter.
        precision: (T, R, K) COCO's interpolated precision by IoU threshold, recall and class; NaN without objects.
        ap: (K,) average precision.
        ap_by_size: (3,) average precision of small, medium and large objects; NaN without objects.
        box_ap: (K,) average precision of boxes, if the detector has masks.
        kinds: (D,) kinds of the detections (see `classify_detections`).
        fates: (G,) fates of the objects (see `object_fates`).
        size_groups: (G,) 0 for small, 1 for medium and 2 for large objects.
        errors: TIDE's error types.
        confusion: (K + 1, K + 1) confusion matrix with background.
        calibration: How often detections are correct at an IoU of 0.5, by score; `None` without detections.
        suspects: Suspected label errors.
        num_found: (N,) true positives of each image.
        num_false: (N,) false positives of each image.
        num_missed: (N,) objects of each image that were not found.
    """

    record: Record
    matches: Matches
    thresholds: Thresholds
    kept: np.ndarray
    scores: Sequence[Score]
    precision: np.ndarray
    ap: np.ndarray
    ap_by_size: np.ndarray
    box_ap: np.ndarray | None
    kinds: np.ndarray
    fates: np.ndarray
    size_groups: np.ndarray
    errors: Sequence[ErrorCost]
    confusion: np.ndarray
    calibration: Calibration | None
    suspects: Sequence[Suspect]
    num_found: np.ndarray
    num_false: np.ndarray
    num_missed: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(N,) F1 of each image; 1 for an image without objects and detections."""
        total = 2 * self.num_found + self.num_errors
        return np.divide(2 * self.num_found, total, out=np.ones(len(total)), where=total > 0)

    @property
    def num_errors(self) -> np.ndarray:
        """(N,) False positives and missed objects of each image."""
        return self.num_false + self.num_missed


@functools.lru_cache(maxsize=2)
def analyse_detections(record: Record) -> DetectionAnalysis:
    """Analyse the detections of a record. The last two results are kept in memory.

    Args:
        record: Record of a detector.
    """
    iou_type = main_iou_type(record)
    precision, by_size = _coco_precision(record, iou_type)  # first, because it checks the detections
    matches = match_record(record, iou_type)
    thresholds = recommend(matches)
    kept = (matches.score >= thresholds.by_class[matches.label]) & matches.counted
    boxes = match_record(record, "bbox") if iou_type == "segm" else None
    kinds, _ = classify_detections(matches)
    size_groups = np.digitize(matches.object_area, np.square(SIZE_LIMITS))
    fates = object_fates(matches, kept)
    correct = kept & (matches.matched[0] >= 0)
    images = len(record.entries)
    num_found = np.bincount(matches.image[correct], minlength=images)
    return DetectionAnalysis(
        record=record,
        matches=matches,
        thresholds=thresholds,
        kept=kept,
        scores=_scores(matches, boxes, correct),
        precision=precision,
        ap=precision.mean(axis=(0, 1)),
        ap_by_size=by_size,
        box_ap=None if boxes is None else average_precisions(boxes, np.ones((1, images), np.int64))[0].mean(axis=0),
        kinds=kinds,
        fates=fates,
        size_groups=size_groups,
        errors=error_costs(matches, kept),
        confusion=confusion(matches, kept),
        calibration=_calibration(matches),
        suspects=label_suspects(matches, kept, size_groups),
        num_found=num_found,
        num_false=np.bincount(matches.image[kept], minlength=images) - num_found,
        num_missed=np.bincount(matches.object_image[~matches.object_crowd], minlength=images) - num_found,
    )


def _scores(matches: Matches, boxes: Matches | None, correct: np.ndarray) -> list[Score]:
    """Return the scores that matter: of masks AP, AP50 and box AP, else AP, AP50 and recall at the thresholds."""
    images = matches.num_images
    weights = np.stack([np.ones(images, np.int64), *(bootstrap_weights(images) if images > 1 else ())])
    precisions = average_precisions(matches, weights)
    kind = "box" if boxes is None else "mask"
    values = {
        f"{kind} AP": mean_average_precision(precisions),
        f"{kind} AP50": mean_average_precision(precisions[:, :1]),
    }
    if boxes is not None:
        values["box AP"] = mean_average_precision(average_precisions(boxes, weights))
    else:
        found = weights @ np.bincount(matches.image[correct], minlength=images)
        objects = weights @ np.bincount(matches.object_image[~matches.object_crowd], minlength=images)
        values["recall"] = np.divide(found, objects, out=np.full(len(weights), np.nan), where=objects > 0)
    return [Score(name, float(all_[0]), all_[1:]) for name, all_ in values.items()]


def _coco_precision(record: Record, iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Return hotcoco's precision (T, R, K) and AP by size, (3,)."""
    settings = record.about.settings
    content = coco_content(record.entries, settings["category_ids"], record.about.classes)
    evaluation = coco_evaluation(*content, iou_type, max_dets=settings["max_dets"])
    precision = np.where(evaluation.eval["precision"] < 0, np.nan, evaluation.eval["precision"])[..., -1]
    # hotcoco has the classes in the order of their ids
    order = np.argsort(np.argsort(settings["category_ids"], kind="stable"), kind="stable")
    precision = precision[:, :, order]
    return precision[..., 0], np.array([_mean(precision[..., size]) for size in (1, 2, 3)])


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _calibration(matches: Matches) -> Calibration | None:
    chosen = matches.counted & (matches.score >= CALIBRATION_FLOOR)
    return calibration(matches.score[chosen], matches.matched[0, chosen] >= 0, bins=10) if chosen.any() else None
