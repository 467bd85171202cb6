"""Score thresholds of a detector: precision, recall and F1 at each threshold, and the recommended ones."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import TwinsError
from .folders import evaluations_of
from .matching import Matches, match_record
from .record import Record, named_if_broken, read_record

GRID = np.arange(101) / 100
MIN_OBJECTS = 25
"""A class with fewer objects has no threshold of its own, because its best threshold would be chance."""


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 at the thresholds `GRID`, at an IoU of 0.5.

    Attributes:
        precision: (101,); NaN above the highest score.
        recall: (101,); NaN without objects.
        f1: (101,), 2 × true positives / (detections + objects); NaN without objects.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> float:
        """The threshold with the largest F1: of a plateau, the one in the middle."""
        return float(GRID[_middle_of_maximum(self.f1)])


@dataclass(frozen=True)
class Thresholds:
    """Recommended score thresholds.

    Attributes:
        overall: The threshold with the largest F1 over the objects of all classes.
        by_class: (K,) the thresholds of the classes; `overall` for a class with fewer than `MIN_OBJECTS` objects.
        own: (K,) whether the class has a threshold of its own.
    """

    overall: float
    by_class: np.ndarray
    own: np.ndarray


def threshold_curve(matches: Matches, label: int | None = None) -> ThresholdCurve:
    """Return precision, recall and F1 of a class, or of all objects together, at each threshold."""
    counted = matches.counted if label is None else matches.counted & (matches.label == label)
    num_objects = matches.num_objects.sum() if label is None else matches.num_objects[label]
    num_detections = _num_at_least(matches.score[counted])
    found = _num_at_least(matches.score[counted & (matches.matched[0] >= 0)])
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = found / num_detections
        recall = found / float(num_objects) if num_objects else np.full(len(GRID), np.nan)
        f1 = 2 * found / (num_detections + num_objects) if num_objects else np.full(len(GRID), np.nan)
    return ThresholdCurve(precision, recall, f1)


def recommend(matches: Matches) -> Thresholds:
    """Return the thresholds with the largest F1 at an IoU of 0.5, overall and by class."""
    curve = threshold_curve(matches)
    overall = curve.best if np.nanmax(curve.f1, initial=0) > 0 else 0.5
    own = matches.num_objects >= MIN_OBJECTS
    by_class = np.full(len(matches.classes), overall)
    for label in np.flatnonzero(own):
        curve = threshold_curve(matches, int(label))
        own[label] = curve.f1.max() > 0
        if own[label]:
            by_class[label] = curve.best
    return Thresholds(overall, by_class, own)


def main_iou_type(record: Record) -> str:
    """Return the IoU by which a detector is judged: of masks if it was evaluated with them, else of boxes."""
    return "segm" if "segm" in record.about.settings["iou_types"] else "bbox"


def recommended_thresholds(record: Record) -> Thresholds:
    """Return the recommended score thresholds of a detector, as the report shows them.

    They maximise F1 at an IoU of 0.5 (of masks, if the detector has them). A class with fewer than `MIN_OBJECTS`
    objects uses the threshold of all classes together.
    """
    with named_if_broken(record.folder):
        return recommend(match_record(record, main_iou_type(record)))


def find_evaluation(checkpoint: str | Path) -> Record:
    """Return the record of a finished evaluation of a checkpoint.

    It is looked for in the evaluations of the run of the checkpoint: first in RUN/evaluation, then in RUN_eval/*, from
    the newest to the oldest. The bytes of the checkpoint must be those that were evaluated.

    Args:
        checkpoint: Path of the checkpoint.

    Raises:
        TwinsError: If there is none.
    """
    path = Path(checkpoint)
    for folder in evaluations_of(path.absolute().parent):
        try:
            record = read_record(folder)
        except TwinsError:  # another evaluation can be used
            continue
        if record.about.task == "detection" and record.is_complete and record.is_of(path):
            return record
    command = shlex.join(["twins-dense", "eval", str(checkpoint)])
    raise TwinsError(
        f"score='auto': there is no finished evaluation of {str(checkpoint)!r} that recommends a threshold; "
        f"run `{command}` first, or choose a number in 0..1"
    )


def _num_at_least(scores: np.ndarray) -> np.ndarray:
    """Return how many scores reach each threshold of `GRID`."""
    return len(scores) - np.searchsorted(np.sort(scores), GRID)


def _middle_of_maximum(values: np.ndarray) -> int:
    """Return the middle of the longest run of positions at which the values have their maximum."""
    at_maximum = np.concatenate([[False], values >= np.nanmax(values) - 1e-12, [False]]).astype(np.int8)
    starts, ends = np.flatnonzero(np.diff(at_maximum) == 1), np.flatnonzero(np.diff(at_maximum) == -1)
    longest = np.argmax(ends - starts)
    return int((starts[longest] + ends[longest] - 1) // 2)
