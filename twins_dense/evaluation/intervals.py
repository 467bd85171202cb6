"""Confidence intervals: the bootstrap over images, and Wilson's interval of a share.

A bootstrap sample (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993) draws as many images as the data set
has, with replacement. It is described by weights: how often each image was drawn. Images are drawn rather than objects,
because the objects of one image are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
"""Lower and upper bound."""

_LEVEL = 0.95  # probability that an interval covers


def bootstrap_weights(num_images: int, *, samples: int = 200, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the weights of bootstrap samples, int64 (num_images,); each sums to `num_images`."""
    random = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(random.integers(num_images, size=num_images), minlength=num_images)


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], Sequence[float]], num_images: int, *, samples: int = 200, seed: int = 0
) -> list[Interval | None]:
    """Return the 95 % interval of each number that a statistic returns (see `interval_of`).

    The interval of a difference of two evaluations is narrower than that of two independent samples, because an image
    that is difficult for one is difficult for both. For such an interval, the statistic returns the difference.

    Args:
        statistic: Function of the weights of the images, int64 (num_images,); a number that a sample does not define is
            NaN.
        num_images: Number of images.
        samples: Number of bootstrap samples.
        seed: Seed of the samples.

    Returns:
        The intervals; all of them are `None` if there are fewer than two images.
    """
    values = statistic(np.ones(num_images, dtype=np.int64))
    if num_images < 2:
        return [None] * len(values)
    of_samples = np.array([statistic(each) for each in bootstrap_weights(num_images, samples=samples, seed=seed)])
    return [interval_of(column, value) for column, value in zip(of_samples.T, values, strict=True)]


def interval_of(samples: np.ndarray | Sequence[float], value: float, level: float = _LEVEL) -> Interval | None:
    """Return the bias-corrected percentile interval (Efron and Tibshirani, section 14.3, without acceleration).

    Scores such as average precision are larger in samples that contain images twice. The correction takes the
    percentiles of the samples relative to the share of samples below the value. (Of 120 sets of 300 images, drawn from
    1,500 synthetic ones, the interval of AP covered the AP of all images in 94 %, without the correction in 80 %. With
    60 images and rare classes, for which AP itself is too high, it was 80 % and 70 %.)

    Args:
        samples: Values of the bootstrap samples; NaN where a sample does not define the value.
        value: Value of the whole data set.
        level: Probability that the interval covers.

    Returns:
        The lower and the upper bound; `None` if the value or all samples are undefined.
    """
    known = np.asarray(samples, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not known.size or not np.isfinite(value):
        return None
    normal = NormalDist()
    below = ((known < value).sum() + (known == value).sum() / 2) / known.size
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / known.size, 1 - 0.5 / known.size)))
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(known, [normal.cdf(2 * bias + normal.inv_cdf(tail)) for tail in tails])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """Return the 95 % interval of a share of independent trials (Wilson, "Probable Inference", 1927).

    Unlike the bootstrap, it is meaningful for few trials, and for none or all of them successful. It is `None` without
    trials.
    """
    if not trials:
        return None
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
