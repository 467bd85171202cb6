"""Scores of classifiers from the record of an evaluation: accuracy, confusion and calibration."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TwinsError
from .calibration import Calibration, calibration
from .confusion import confused_pairs
from .intervals import Interval, bootstrap_intervals
from .record import Record


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier on the N images that can be read.

    Attributes:
        names: Names of the K classes; names that several classes share are followed by the WordNet ids.
        indices: int64 (N,), positions of the images in the entries of the record.
        labels: int64 (N,), true labels.
        top: int64 (N, T), the T most probable labels, best first; T is 5, or K if that is smaller.
        probabilities: float64 (N, T), the probabilities of these labels.
        unreadable: One line for each image that could not be read.
    """

    names: Sequence[str]
    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray
    unreadable: Sequence[str]

    @property
    def hits(self) -> np.ndarray:
        """Whether the label is the most probable one, and whether it is among the T most probable ones, bool (N, 2)."""
        found = self.top == self.labels[:, None]
        return np.stack([found[:, 0], found.any(1)], axis=1)

    @property
    def counts(self) -> np.ndarray:
        """Numbers of images, of correct top-1 and of correct top-5 predictions of each class, int64 (K, 3)."""
        result = np.zeros((len(self.names), 3), np.int64)
        np.add.at(result, self.labels, np.insert(self.hits, 0, True, axis=1).astype(np.int64))
        return result

    @property
    def num_predicted(self) -> np.ndarray:
        """Number of images that are predicted as each class, int64 (K,)."""
        return np.bincount(self.top[:, 0], minlength=len(self.names))

    @property
    def confusion(self) -> np.ndarray:
        """Number of images by true class (row) and predicted class (column), int64 (K, K)."""
        result = np.zeros((len(self.names), len(self.names)), np.int64)
        np.add.at(result, (self.labels, self.top[:, 0]), 1)
        return result

    @property
    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """All wrong predictions as (true class, predicted class, images), the most frequent pair first."""
        return confused_pairs(self.confusion)

    @property
    def calibration(self) -> Calibration:
        """Calibration of the probability of the most probable label."""
        return calibration(self.probabilities[:, 0], self.hits[:, 0])

    def differences(self, against: ClassificationScores) -> list[Interval | None]:
        """Return the 95 % bootstrap intervals of the differences of top-1 and top-5, over the images of both."""
        _, mine, theirs = np.intersect1d(self.indices, against.indices, return_indices=True)
        changes = self.hits[mine].astype(np.float64) - against.hits[theirs]
        return bootstrap_intervals(lambda weights: (weights @ changes / len(changes)).tolist(), len(changes))


@functools.lru_cache(maxsize=2)
def score_classification(record: Record) -> ClassificationScores:
    """Collect the predictions of a record. The last two results are kept in memory.

    Args:
        record: Record of a classifier.

    Raises:
        TwinsError: If the record has no image that could be read.
    """
    entries = [(index, entry) for index, entry in enumerate(record.entries) if "error" not in entry]
    if not entries:
        raise TwinsError(f"{str(record.folder)!r} contains no image that could be read: validate again")
    names, wnids = record.about.classes, record.about.settings["wnids"]
    shared = Counter(names)
    return ClassificationScores(
        [f"{name} ({wnid})" if shared[name] > 1 else name for name, wnid in zip(names, wnids, strict=True)],
        np.array([index for index, _ in entries]),
        np.array([entry["label"] for _, entry in entries]),
        np.array([entry["top"] for _, entry in entries]),
        np.array([entry["probabilities"] for _, entry in entries]),
        [entry["error"] for entry in record.entries if "error" in entry],
    )
