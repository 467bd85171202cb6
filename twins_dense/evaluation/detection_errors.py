"""Error analysis of detectors: error types, confusion, the fate of each object, and suspected label errors.

The error types are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV
2020). hotcoco offers them as well, but it lets two detections become true positives of one object when it corrects an
error, and it leaves a detection in its wrong class; here, errors are corrected as in the paper and its code (tidecv).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .matching import BACKGROUND_IOU, Matches

CORRECT, WRONG_CLASS, SHIFTED, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
"""The kinds of detections: TIDE calls the five errors among them Cls, Loc, Both, Dupe and Bkg."""

ERRORS: Mapping[str, int] = {
    "Cls": WRONG_CLASS,
    "Loc": SHIFTED,
    "Both": BOTH,
    "Dupe": DUPLICATE,
    "Bkg": BACKGROUND,
}

FOUND, LOW_SCORE, OTHER_CLASS, POOR_OVERLAP, NEVER = range(5)
"""The fates of objects (see `object_fates`)."""


@dataclass(frozen=True)
class ErrorCost:
    """An error type of TIDE.

    Attributes:
        name: "Cls", "Loc", "Both", "Dupe", "Bkg" or "Miss".
        cost: AP at an IoU of 0.5 that the model would gain without the errors of this type, as a fraction.
        count: Number of errors at the recommended thresholds.
    """

    name: str
    cost: float
    count: int


@dataclass(frozen=True)
class Suspect:
    """An annotation that may be wrong.

    Attributes:
        kind: "wrong class", "missing annotation" or "spurious annotation".
        detection: Index of the detection that speaks against the annotations; -1 for a spurious annotation.
        object: Index of the suspected object; -1 for a missing annotation.
        confidence: Score of the detection; for a spurious annotation, the share of similar objects that were detected.
    """

    kind: str
    detection: int
    object: int
    confidence: float


def classify_detections(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of each detection at an IoU of 0.5, and the object that a corrected detection would find.

    A detection that is not correct is, in this order:

    * `SHIFTED` if its best overlap with an object of its class is between 0.1 and 0.5;
    * `WRONG_CLASS` if it overlaps an object of another class by 0.5 or more;
    * `DUPLICATE` if a detection with a higher score has found the object of its class;
    * `BACKGROUND` if it overlaps no object by more than 0.1;
    * `BOTH` otherwise: it overlaps an object of another class by 0.1 to 0.5.

    Detections of crowd regions are `IGNORED`. The kinds do not depend on a score threshold.

    Returns:
        (D,) kinds and (D,) objects; -1 for a detection that is neither shifted nor of the wrong class.
    """
    objects = ~matches.object_crowd[matches.pair_object]
    same = matches.label[matches.pair_detection] == matches.object_label[matches.pair_object]
    own_iou, own = matches.best_pairs(objects & same)
    other_iou, other = matches.best_pairs(objects & ~same)
    conditions = [
        matches.ignored[0],
        matches.matched[0] >= 0,
        (own_iou >= BACKGROUND_IOU) & (own_iou <= 0.5),
        other_iou >= 0.5,
        own_iou > 0.5,
        other_iou <= BACKGROUND_IOU,
    ]
    kinds = np.select(conditions, [IGNORED, CORRECT, SHIFTED, WRONG_CLASS, DUPLICATE, BACKGROUND], BOTH)
    return kinds, np.where(kinds == SHIFTED, own, np.where(kinds == WRONG_CLASS, other, -1))


def error_costs(matches: Matches, kept: np.ndarray) -> list[ErrorCost]:
    """Return the six error types of TIDE, with their cost and count.

    Args:
        matches: Detections and objects.
        kept: (D,) which detections reach the recommended threshold. They determine the counts; the costs are about all
            detections, because AP is.
    """
    kinds, targets = classify_detections(matches)
    base = _mean_ap(matches, kinds == CORRECT, kinds != IGNORED, matches.label, matches.num_objects)
    # An object that was found already, or that a better detection would find, cannot be found a second time.
    found = _found(matches, matches.counted)
    first = np.full(len(matches.object_label), len(matches.score))
    aimed = np.flatnonzero(targets >= 0)
    np.minimum.at(first, targets[aimed], aimed)
    corrected = np.zeros(len(matches.score), dtype=bool)
    corrected[aimed] = ~found[targets[aimed]] & (first[targets[aimed]] == aimed)
    result = []
    for name, kind in ERRORS.items():
        fixed = (kinds == kind) & corrected
        label = matches.label.copy()
        label[fixed] = matches.object_label[targets[fixed]]
        remaining = (kinds != IGNORED) & ((kinds != kind) | fixed)
        ap = _mean_ap(matches, (kinds == CORRECT) | fixed, remaining, label, matches.num_objects)
        result.append(ErrorCost(name, max(0.0, ap - base), int(((kinds == kind) & kept).sum())))
    num_objects = matches.num_objects - np.bincount(
        matches.object_label[_missed(matches, matches.counted, targets)], minlength=len(matches.classes)
    )
    ap = _mean_ap(matches, kinds == CORRECT, kinds != IGNORED, matches.label, num_objects)
    result.append(ErrorCost("Miss", max(0.0, ap - base), int(_missed(matches, kept & matches.counted, targets).sum())))
    return result


def confusion(matches: Matches, kept: np.ndarray) -> np.ndarray:
    """Return the confusion matrix at an IoU of 0.5, int64 (K + 1, K + 1): rows are true, columns predicted classes.

    The last row has detections without an object of their own, and the last column has missed objects. Each object and
    each detection is counted once: detections are first matched to objects of their class, so that the diagonal has the
    true positives, and then to the remaining objects of other classes. (hotcoco matches regardless of the class, so
    that its diagonal depends on which of two overlapping objects a detection happens to take.)
    """
    num_classes = len(matches.classes)
    result = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    correct = kept & matches.counted & (matches.matched[0] >= 0)
    np.add.at(result, (matches.label[correct], matches.label[correct]), 1)
    free = ~_found(matches, kept) & ~matches.object_crowd
    open_ = kept & matches.counted & ~correct
    pairs = np.flatnonzero((matches.pair_iou >= 0.5) & open_[matches.pair_detection] & free[matches.pair_object])
    pairs = pairs[np.lexsort((-matches.pair_iou[pairs], matches.pair_detection[pairs]))]
    for detection, object_ in zip(
        matches.pair_detection[pairs].tolist(), matches.pair_object[pairs].tolist(), strict=True
    ):
        if open_[detection] and free[object_]:
            result[matches.object_label[object_], matches.label[detection]] += 1
            open_[detection] = free[object_] = False
    np.add.at(result[-1], matches.label[open_], 1)
    np.add.at(result[:, -1], matches.object_label[free], 1)
    return result


def object_fates(matches: Matches, kept: np.ndarray) -> np.ndarray:
    """Return what became of each object, (G,): the first of these that is true. Crowd regions are -1.

    * `FOUND`: a detection that reaches its threshold is matched to it at an IoU of 0.5.
    * `LOW_SCORE`: a detection is matched to it, but its score is too low.
    * `OTHER_CLASS`: a detection of another class overlaps it by 0.5 or more, with any score.
    * `POOR_OVERLAP`: a detection of any class overlaps it by 0.1 or more, with any score.
    * `NEVER`: no detection overlaps it by 0.1, with any score.
    """
    best = np.zeros((2, len(matches.object_label)))
    same = matches.label[matches.pair_detection] == matches.object_label[matches.pair_object]
    np.maximum.at(best, (same.astype(int), matches.pair_object), matches.pair_iou)
    conditions = [
        matches.object_crowd,
        _found(matches, kept),
        _found(matches, matches.counted),
        best[0] >= 0.5,
        best.max(axis=0) >= BACKGROUND_IOU,
    ]
    return np.select(conditions, [-1, FOUND, LOW_SCORE, OTHER_CLASS, POOR_OVERLAP], NEVER)


def label_suspects(matches: Matches, kept: np.ndarray, size_groups: np.ndarray) -> list[Suspect]:
    """Return annotations that may be wrong, the most suspicious of each kind first.

    * A wrong class: a confident detection overlaps an object of another class that was not found, by 0.5 or more.
    * A missing annotation: a confident detection overlaps no object by more than 0.1.
    * A spurious annotation: the object is never found (see `object_fates`), although this is so for at most 2 % of the
      objects of its class and size, of which there are at least 20.

    A detection is confident if it reaches the recommended threshold and a score of 0.5.

    Args:
        matches: Detections and objects.
        kept: (D,) which detections reach the recommended threshold.
        size_groups: (G,) group of sizes of each object.
    """
    kinds, targets = classify_detections(matches)
    confident = kept & (matches.score >= 0.5)
    touched, _ = matches.best_pairs(np.ones(len(matches.pair_iou), dtype=bool))
    missing = np.flatnonzero(confident & (kinds == BACKGROUND) & (touched <= BACKGROUND_IOU))
    result: list[Suspect] = []
    suspected = _found(matches, kept)
    for detection in np.flatnonzero(confident & (kinds == WRONG_CLASS)).tolist():
        if not suspected[targets[detection]]:
            suspected[targets[detection]] = True
            result.append(Suspect("wrong class", detection, int(targets[detection]), float(matches.score[detection])))
    result += [Suspect("missing annotation", int(i), -1, float(matches.score[i])) for i in missing]
    fates = object_fates(matches, kept)
    groups = matches.object_label * (size_groups.max(initial=0) + 1) + size_groups
    objects = np.bincount(groups[fates >= 0], minlength=groups.max(initial=0) + 1)
    never = np.bincount(groups[fates == NEVER], minlength=len(objects))
    rate = 1 - never / np.maximum(objects, 1)
    spurious = [
        Suspect("spurious annotation", -1, int(i), float(rate[groups[i]]))
        for i in np.flatnonzero(fates == NEVER)
        if objects[groups[i]] >= 20 and rate[groups[i]] >= 0.98
    ]
    return result + sorted(spurious, key=lambda suspect: -suspect.confidence)


def _found(matches: Matches, kept: np.ndarray) -> np.ndarray:
    """Return which objects some detections find, (G,)."""
    found = np.zeros(len(matches.object_label), dtype=bool)
    found[matches.matched[0][kept & (matches.matched[0] >= 0)]] = True
    return found & ~matches.object_crowd


def _missed(matches: Matches, kept: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return which objects are neither found nor the object of a shifted detection or one of the wrong class, (G,)."""
    aimed = np.zeros(len(matches.object_label), dtype=bool)
    aimed[targets[kept & (targets >= 0)]] = True
    return ~_found(matches, kept) & ~aimed & ~matches.object_crowd


def _mean_ap(
    matches: Matches, correct: np.ndarray, counted: np.ndarray, label: np.ndarray, num_objects: np.ndarray
) -> float:
    """Return the mean over classes of AP at an IoU of 0.5, with changed detections or numbers of objects.

    A class of which no object remains, since all were missed, has nothing left to find and counts as 1.
    """
    from hotcoco.metrics import average_precision

    values = []
    for index in np.flatnonzero(matches.num_objects):
        chosen = counted & (label == index)
        if num_objects[index]:
            values.append(average_precision(matches.score[chosen], correct[chosen], int(num_objects[index])))
        else:
            values.append(1.0)
    return float(np.mean(values)) if values else float("nan")
