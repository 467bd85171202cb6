"""Confidence intervals by the bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993).

A bootstrap sample draws as many images as the data set has, with replacement. It is described by weights: how often
each image was drawn. Images are drawn rather than objects, because the objects of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""A function of weights, int64 (num_images,), that returns a number, or NaN if the sample does not define it."""


def bootstrap_weights(num_images: int, *, samples: int = 200, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the weights of bootstrap samples, int64 (num_images,); each sums to `num_images`."""
    random = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(random.integers(num_images, size=num_images), minlength=num_images)


def bootstrap_interval(
    statistic: Statistic, num_images: int, *, samples: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the bias-corrected percentile interval of a statistic.

    Args:
        statistic: Function of the weights of the images.
        num_images: Number of images.
        samples: Number of bootstrap samples.
        seed: Seed of the samples.
        level: Probability that the interval covers.

    Returns:
        The lower and the upper bound; `None` if there are fewer than two images or no sample defines the statistic.
    """
    if num_images < 2:
        return None
    value = statistic(np.ones(num_images, dtype=np.int64))
    weights = bootstrap_weights(num_images, samples=samples, seed=seed)
    return interval_of([statistic(each) for each in weights], value, level)


def paired_interval(
    statistic: Statistic, other: Statistic, num_images: int, *, samples: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of `statistic - other`, where both see the same images in every sample.

    The interval is narrower than that of two independent samples, because difficult images are difficult for both.
    """
    return bootstrap_interval(
        lambda weights: statistic(weights) - other(weights), num_images, samples=samples, seed=seed, level=level
    )


def interval_of(samples: np.ndarray | list[float], value: float, level: float = 0.95) -> tuple[float, float] | None:
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
