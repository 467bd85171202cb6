"""Read confusion matrices, whose rows are the true and whose columns are the predicted classes."""

from __future__ import annotations

import numpy as np


def confused_pairs(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, count) of all confusions, the most frequent pair first.

    Args:
        confusion: (K, K) counts.
    """
    rows, columns = np.nonzero(confusion * ~np.eye(len(confusion), dtype=bool))
    counts = confusion[rows, columns]
    order = np.argsort(-counts, kind="stable")
    return list(zip(*(values[order].tolist() for values in (rows, columns, counts)), strict=True))
