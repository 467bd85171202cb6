"""Confidence intervals by the bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993).

A bootstrap sample draws as many images as the data set has, with replacement. It is described by weights: how often
each image was drawn. Images are drawn rather than objects, because the objects of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    """Return the percentile interval of a statistic.

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
    return interval_of(
        [statistic(weights) for weights in bootstrap_weights(num_images, samples=samples, seed=seed)], level
    )


def paired_interval(
    statistic: Statistic, other: Statistic, num_images: int, *, samples: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of `statistic - other`, where both see the same images in every sample.

    The interval is narrower than that of two independent samples, because difficult images are difficult for both.
    """
    return bootstrap_interval(
        lambda weights: statistic(weights) - other(weights), num_images, samples=samples, seed=seed, level=level
    )


def interval_of(values: np.ndarray | list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval that contains the middle `level` of the values of samples; `None` if all are NaN."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
