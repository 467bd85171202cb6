"""COCO's average precision of weighted images, for many weights at once: the bootstrap needs hundreds of them."""

from __future__ import annotations

import numpy as np

from .matching import IOU_THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)
_BLOCK = 1 << 22  # elements of the largest temporary array


def average_precisions(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Return the average precision of each class at each IoU threshold, with each image counted repeatedly.

    An image with the weight 2 counts like two copies of it, so the result equals that of a data set with copies.

    Args:
        matches: Detections and objects.
        weights: int (S, num_images), how often each image counts in each of S samples.

    Returns:
        float64 (S, T, K); NaN for a class without objects in the sample.
    """
    result = np.full((len(weights), len(IOU_THRESHOLDS), len(matches.classes)), np.nan)
    by_class = np.argsort(matches.label, kind="stable")  # keeps the order of scores
    bounds = np.searchsorted(matches.label[by_class], np.arange(len(matches.classes) + 1))
    for label in np.flatnonzero(matches.num_objects):
        chosen = by_class[bounds[label] : bounds[label + 1]]
        objects = matches.object_image[(matches.object_label == label) & ~matches.object_crowd]
        step = max(1, _BLOCK // max(1, len(chosen)))
        for first in range(0, len(weights), step):
            block = slice(first, first + step)
            result[block, :, label] = _class_average_precisions(
                weights[block][:, matches.image[chosen]],
                matches.matched[:, chosen] >= 0,
                matches.ignored[:, chosen],
                weights[block][:, objects].sum(axis=1),
            )
    return result


def mean_average_precision(precisions: np.ndarray) -> np.ndarray:
    """Return the mean over thresholds and classes of (S, T, K), as (S,); NaN if no class has objects."""
    known = np.isfinite(precisions)
    total = np.where(known, precisions, 0).sum(axis=(1, 2))
    return np.divide(total, known.sum(axis=(1, 2)), out=np.full(len(total), np.nan), where=known.any(axis=(1, 2)))


def _class_average_precisions(
    weights: np.ndarray, matched: np.ndarray, ignored: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Return the average precisions of one class, (S, T).

    Args:
        weights: (S, D) weights of the images of the detections, by descending score.
        matched: bool (T, D).
        ignored: bool (T, D).
        num_objects: (S,) weighted number of objects.
    """
    result = np.zeros((len(weights), len(matched)))
    result[num_objects == 0] = np.nan
    samples = np.flatnonzero(num_objects)
    weights = weights[samples]
    counts = np.cumsum(weights, axis=1)
    for index in range(len(matched)):
        positive = np.flatnonzero(matched[index] & ~ignored[index])
        if not positive.size:
            continue
        if ignored[index].any():
            detections = np.cumsum(weights * ~ignored[index], axis=1)[:, positive]
        else:
            detections = counts[:, positive]
        # The precision is only needed at the true positives: from one to the next it decreases.
        found = np.cumsum(weights[:, positive], axis=1)
        precision = found / (detections + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Each of the 101 recalls belongs to the first true positive that reaches it.
        reached = np.searchsorted(RECALLS, found / num_objects[samples, None], side="right")
        result[samples, index] = (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return result
