"""Scores of classifiers from the record of an evaluation: accuracy, confusion and calibration."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..errors import TwinsError
from .bootstrap import bootstrap_weights, interval_of
from .calibration import Calibration, calibration
from .record import Record

_LEVEL = 0.95  # of intervals


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
        wrong = np.flatnonzero(~self.hits[:, 0])
        pairs = Counter(zip(self.labels[wrong].tolist(), self.top[wrong, 0].tolist(), strict=True))
        return [(*pair, count) for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]

    @property
    def calibration(self) -> Calibration:
        """Calibration of the probability of the most probable label."""
        return calibration(self.probabilities[:, 0], self.hits[:, 0])

    def differences(self, against: ClassificationScores) -> list[tuple[float, float] | None]:
        """Return the 95 % bootstrap intervals of the differences of top-1 and top-5, over the images of both."""
        _, mine, theirs = np.intersect1d(self.indices, against.indices, return_indices=True)
        changes = self.hits[mine].astype(np.float64) - against.hits[theirs]
        samples = np.array([weights @ changes for weights in bootstrap_weights(len(changes))]) / len(changes)
        return [interval_of(samples[:, i], value) for i, value in enumerate(changes.mean(0).tolist())]


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


def wilson_interval(successes: int, trials: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of independent trials (Wilson, "Probable Inference", 1927).

    Unlike the bootstrap, it is meaningful for few images, and for none or all of them correct. It is `None` without
    trials.
    """
    if not trials:
        return None
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    share = successes / trials
    center = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
