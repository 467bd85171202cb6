"""Calibration: whether predictions with a confidence of 80 % are correct in 80 % of the cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Attributes:
        confidence: float64 (bins,), mean confidence in each bin; NaN if it is empty.
        accuracy: float64 (bins,), share of correct predictions in each bin; NaN if it is empty.
        counts: int64 (bins,), number of predictions in each bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |confidence - accuracy|, weighted by the counts."""
        if not self.counts.any():
            return float("nan")
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float(np.average(gaps, weights=self.counts))

    @property
    def bias(self) -> float:
        """Mean confidence minus accuracy: positive if the predictions are overconfident."""
        if not self.counts.any():
            return float("nan")
        return float(np.average(np.nan_to_num(self.confidence - self.accuracy), weights=self.counts))


def calibration(
    confidence: np.ndarray, correct: np.ndarray, counts: np.ndarray | None = None, *, bins: int = 15
) -> Calibration:
    """Compute the calibration of predictions.

    Args:
        confidence: (N,) probabilities in 0..1.
        correct: (N,) whether each prediction is correct, or how many of `counts` are.
        counts: (N,) number of predictions with each confidence; one each by default.
        bins: Number of bins. A confidence that lies on an edge belongs to the bin above it, and 1 to the last.
    """
    confidence = np.asarray(confidence, dtype=np.float64).clip(0, 1)  # rounding can exceed 1
    counts = np.ones(len(confidence), np.int64) if counts is None else counts
    chosen = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    found, certainty, right = (np.bincount(chosen, each, bins) for each in (counts, counts * confidence, correct))
    with np.errstate(invalid="ignore"):
        return Calibration(certainty / found, right / found, found.astype(np.int64))
