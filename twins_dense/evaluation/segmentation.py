"""Scores of segmentors from the record of an evaluation: regions, boundaries, confusion and calibration.

The scores of regions equal those of mmsegmentation's IoUMetric. Areas are kept for each image and class, so that scores
of any sample of the images follow from them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hotcoco.metrics import pixel_confusion
from tqdm import tqdm

from ..data.image_files import NUM_THREADS, UNREADABLE, open_image
from ..errors import TwinsError, one_line
from .calibration import Calibration, calibration
from .confusion import confused_pairs
from .intervals import Interval, bootstrap_intervals
from .record import Record

IGNORED = 255
"""Value of ignored pixels in the true label maps that `read_maps` returns."""

BOUNDARY_WIDTH = 0.02
"""Width of boundaries as a fraction of the diagonal of the image, as in Cheng et al. (2021), section 4."""


@dataclass(frozen=True)
class Areas:
    """Numbers of pixels by class, int64 or float64 (..., K). Ignored pixels do not count.

    Attributes:
        truth: Pixels that belong to the class.
        prediction: Pixels that are predicted as the class.
        both: Pixels for which both are true.
    """

    truth: np.ndarray
    prediction: np.ndarray
    both: np.ndarray

    def total(self, weights: np.ndarray | None = None) -> Areas:
        """Return the sums over the images, (K,), each image counted as often as `weights`, (N,), says."""
        if weights is None:
            return Areas(self.truth.sum(0), self.prediction.sum(0), self.both.sum(0))
        factors = weights.astype(np.float64)
        return Areas(factors @ self.truth, factors @ self.prediction, factors @ self.both)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union; NaN if no pixel belongs to the class or is predicted as it."""
        return _ratio(self.both, self.truth + self.prediction - self.both)

    @property
    def recall(self) -> np.ndarray:
        """Share of the pixels of the class that are found, which mmsegmentation calls Acc; NaN if there are none."""
        return _ratio(self.both, self.truth)

    @property
    def precision(self) -> np.ndarray:
        """Share of the predicted pixels that are correct; NaN if there are none."""
        return _ratio(self.both, self.prediction)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, also known as Dice; NaN where the IoU is NaN."""
        return _ratio(2 * self.both, self.truth + self.prediction)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a segmentor on N images of K classes.

    Attributes:
        regions: Areas of the classes, (N, K).
        boundaries: Areas of the parts of the classes that lie near their boundaries, (N, K). Their IoU is the Boundary
            IoU of Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (2021): a pixel
            lies near the boundary if the square of 2 * width + 1 pixels around it contains a pixel of another class or
            an ignored pixel, or leaves the image.
        boundary_widths: int64 (N,), width of the boundaries in pixels in each image.
        confusion: int64 (K, K), pixels by true class (row) and predicted class (column).
        calibration: Calibration of the recorded pixels; `None` if no confidence was recorded.
    """

    regions: Areas
    boundaries: Areas
    boundary_widths: np.ndarray
    confusion: np.ndarray
    calibration: Calibration | None

    @property
    def of_images(self) -> np.ndarray:
        """The mIoU of each image, (N,), over the classes in its truth or prediction; NaN if all pixels are ignored."""
        return _mean(self.regions.iou)

    @property
    def boundary_share(self) -> np.ndarray:
        """Share of the pixels of each class that lie near its boundary, (K,): close to 1 for thin classes."""
        return _ratio(self.boundaries.truth.sum(0), self.regions.truth.sum(0))

    def totals(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc, each image counted as often as `weights`, (N,), says."""
        areas = self.regions.total(weights)
        return {
            "mIoU": float(_mean(areas.iou)),
            "mAcc": float(_mean(areas.recall)),
            "aAcc": float(_ratio(areas.both.sum(), areas.truth.sum())),
        }

    def intervals(self, against: SegmentationScores | None = None) -> dict[str, Interval | None]:
        """Return the 95 % bootstrap interval over images of each total, or of its difference from `against`."""

        def values(weights: np.ndarray) -> list[float]:
            mine = self.totals(weights)
            other = against.totals(weights) if against else dict.fromkeys(mine, 0.0)
            return [mine[name] - other[name] for name in mine]

        return dict(zip(self.totals(), bootstrap_intervals(values, len(self.boundary_widths)), strict=True))

    @property
    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """All wrong pixels as (true class, predicted class, pixels), the most frequent pair first."""
        return confused_pairs(self.confusion)


@functools.lru_cache(maxsize=2)
def score_segmentation(record: Record, *, boundary_width: float = BOUNDARY_WIDTH) -> SegmentationScores:
    """Compute the scores of the images of a record. The last two results are kept in memory.

    Memory grows with the number of images times the number of classes, not with the number of pixels.

    Args:
        record: Record of an evaluation of a segmentor.
        boundary_width: Width of boundaries as a fraction of the diagonal of the image; at least one pixel is used.

    Raises:
        TwinsError: If the record has no image, or a label map is missing, broken or does not match.
    """
    if not record.entries:
        raise TwinsError(f"{str(record.folder)!r} contains no finished image: resume the evaluation with --resume")
    num_classes = len(record.about.classes)

    def count(entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
        truth, prediction = read_maps(record, entry)
        try:
            regions = pixel_confusion(truth, prediction, num_classes, ignore_index=IGNORED)
        except ValueError as error:
            raise TwinsError(f"{entry['labels']} does not match the evaluation: {one_line(error)}") from None
        width = max(1, round(boundary_width * math.hypot(*truth.shape)))
        boundaries = _boundary_confusion(truth, prediction, num_classes, width)
        return regions, boundaries, width, _confidence_counts(record, entry, truth, prediction)

    shape = (3, len(record.entries), num_classes)
    regions, boundaries = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    widths = np.zeros(len(record.entries), np.int64)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    levels = np.zeros((2, 256), np.int64)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        found = tqdm(pool.map(count, record.entries), "label maps", len(record.entries), delay=2, disable=None)
        for index, (of_regions, of_boundaries, width, of_levels) in enumerate(found):
            regions[:, index] = of_regions.sum(1), of_regions.sum(0), of_regions.diagonal()
            inner = of_boundaries[:-1].sum(1), of_boundaries[:, :-1].sum(0), of_boundaries.diagonal()[:-1]
            boundaries[:, index] = inner
            widths[index] = width
            confusion += of_regions.astype(np.int64)
            if of_levels is not None:
                levels += of_levels
    calibrated = calibration(np.arange(256) / 255, levels[0], levels[1]) if levels.any() else None
    return SegmentationScores(Areas(*regions), Areas(*boundaries), widths, confusion, calibrated)


def read_maps(record: Record, entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the label maps of an image as training reads them.

    Args:
        record: The record.
        entry: Entry of the image.

    Returns:
        The true and the predicted label map, uint8 (H, W) with the classes 0..K-1; ignored pixels of the truth are 255.

    Raises:
        TwinsError: If a file is missing or broken, or the sizes differ.
    """
    truth = np.take(_label_values(record.about.settings), _read(Path(entry["labels"])))
    prediction = _read(record.folder / entry["prediction"])
    if truth.shape != prediction.shape:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (truth, prediction)]
        raise TwinsError(
            f"{entry['labels']} has {sizes[0]} pixels, the recorded prediction {sizes[1]}: "
            "evaluate again, because the data set has changed"
        )
    return truth, prediction


def read_confidence(record: Record, entry: Mapping[str, Any]) -> np.ndarray | None:
    """Read the confidence of an image, uint8 with 255 for 1, of every nth row and column; `None` if there is none."""
    name = entry.get("confidence")
    return _read(record.folder / name) if name else None


def _label_values(settings: Mapping[str, Any]) -> np.ndarray:
    """Return the class of each value in label maps on disk, uint8 (256,)."""
    values = np.arange(256)
    if settings.get("first_value", 0):  # mmsegmentation's reduce_zero_label: 0 and 255 are ignored
        values = np.where((values == 0) | (values == IGNORED), IGNORED, values - 1)
    values[values == settings.get("ignore_index", IGNORED)] = IGNORED
    return values.astype(np.uint8)


def _read(path: Path) -> np.ndarray:
    try:
        with open_image(path) as file:
            return np.asarray(file, dtype=np.uint8)
    except UNREADABLE as error:
        raise TwinsError(f"{path} cannot be read ({one_line(error)}); the report needs this label map") from None


def _boundary_confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int, width: int) -> np.ndarray:
    """Return the confusion matrix near boundaries, (K + 1, K + 1); the last class stands for all other pixels."""
    known = truth != IGNORED
    maps = []
    for labels in (truth, np.where(known, prediction, np.uint8(IGNORED))):
        padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=IGNORED)
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        near = (cv2.dilate(padded, square) != cv2.erode(padded, square))[1:-1, 1:-1]
        maps.append(np.where(near & known, labels, num_classes).astype(np.uint8))
    return pixel_confusion(maps[0], maps[1], num_classes + 1)


def _confidence_counts(
    record: Record, entry: Mapping[str, Any], truth: np.ndarray, prediction: np.ndarray
) -> np.ndarray | None:
    """Return the numbers of correct and of all recorded pixels by confidence, int64 (2, 256)."""
    confidence = read_confidence(record, entry)
    if confidence is None:
        return None
    step = -(-max(truth.shape) // max(confidence.shape))
    truth, prediction = truth[::step, ::step], prediction[::step, ::step]
    if truth.shape != confidence.shape:
        raise TwinsError(f"{record.folder / entry['confidence']} does not match the image: evaluate again")
    chosen = [(truth == prediction) & (truth != IGNORED), truth != IGNORED]
    return np.stack([np.bincount(confidence[mask], minlength=256) for mask in chosen])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without NaN; NaN if there are no other values."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
