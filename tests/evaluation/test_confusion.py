"""Pairs of confused classes."""

from __future__ import annotations

import numpy as np

from twins_dense.evaluation.confusion import confused_pairs


def test_frequent_pairs_come_first_and_equal_ones_in_the_order_of_the_classes() -> None:
    confusion = np.array([[50, 2, 0], [7, 40, 0], [2, 0, 0]])
    assert confused_pairs(confusion) == [(1, 0, 7), (0, 1, 2), (2, 0, 2)]
