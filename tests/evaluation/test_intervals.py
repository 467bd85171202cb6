"""Confidence intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from twins_dense.evaluation.intervals import bootstrap_intervals, bootstrap_weights, interval_of, wilson_interval

VALUES = np.random.default_rng(5).normal(10, 2, 400)


def mean(weights: np.ndarray) -> list[float]:
    return [float((VALUES * weights).sum() / weights.sum())]


def test_weights_are_draws_with_replacement() -> None:
    weights = np.stack(list(bootstrap_weights(7, samples=500)))
    assert weights.shape == (500, 7) and (weights.sum(axis=1) == 7).all()
    assert weights.mean() == 1 and 0.3 < (weights == 0).mean() < 0.37  # (6 / 7) ** 7 = 0.340


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    ((low, high),) = bootstrap_intervals(mean, len(VALUES), samples=2000)
    error = VALUES.std() / len(VALUES) ** 0.5
    np.testing.assert_allclose([low, high], [VALUES.mean() - 1.96 * error, VALUES.mean() + 1.96 * error], atol=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap_intervals(mean, 400) == bootstrap_intervals(mean, 400)
    assert bootstrap_intervals(mean, 400) != bootstrap_intervals(mean, 400, seed=1)


def test_a_paired_difference_has_no_variance_from_difficult_images() -> None:
    ((low, high),) = bootstrap_intervals(lambda weights: [mean(weights)[0] + 0.5 - mean(weights)[0]], 400)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)


def test_samples_that_are_all_too_large_are_corrected() -> None:
    shifted = NormalDist(0.1)  # as if the bootstrap added 0.1 to the value 0
    samples = np.array([shifted.inv_cdf((k + 0.5) / 4000) for k in range(4000)])
    low, high = interval_of(samples, 0.0)
    np.testing.assert_allclose([low, high], [0.1 - 1.96 - 0.2, 0.1 + 1.96 - 0.2], atol=0.01)


def test_undefined_samples_are_left_out() -> None:
    nan = float("nan")
    assert bootstrap_intervals(lambda weights: [1.0, 2.0], 1) == [None, None]
    first, second = bootstrap_intervals(lambda weights: [nan, 2.0], 5)
    assert first is None and second == pytest.approx((2.0, 2.0))
    assert interval_of([nan, nan], 1.0) is None and interval_of([1.0], nan) is None
    low, high = interval_of([nan, 1.0, 3.0], 2.0, level=0.999)
    assert low == pytest.approx(1, abs=0.01) and high == pytest.approx(3, abs=0.01)


def test_wilson_intervals() -> None:
    """The published example of 81 of 263 (Newcombe, 1998), and the extremes."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=5e-5)
    assert wilson_interval(0, 0) is None
