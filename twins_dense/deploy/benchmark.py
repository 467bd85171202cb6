"""Compare the speed of our backbone with that of another implementation, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..factory import create_backbone
from ..weights.load import load_weights

Pyramid = Callable[[Tensor], Sequence[Tensor]]  # function from images to levels


@dataclass(frozen=True)
class Comparison:
    """Times of two implementations, measured in pairs.

    Attributes:
        pairs: For each round, the seconds that our and their implementation took.
    """

    pairs: list[tuple[float, float]]

    @property
    def our_median(self) -> float:
        return statistics.median(ours for ours, _ in self.pairs)

    @property
    def their_median(self) -> float:
        return statistics.median(theirs for _, theirs in self.pairs)

    @property
    def ratios(self) -> list[float]:
        """Their time divided by ours, for each round."""
        return [theirs / ours for ours, theirs in self.pairs]

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Lower and upper quartile of the ratios; with fewer than 4 rounds, their minimum and maximum."""
        if len(self.pairs) < 4:
            return min(self.ratios), max(self.ratios)
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return low, high


@torch.inference_mode()
def compare(ours: Pyramid, theirs: Pyramid, images: Tensor, rounds: int) -> Comparison:
    """Check that two implementations compute the same levels, then time them alternately.

    Raises:
        AssertionError: If a level differs by more than 1e-3 of its largest magnitude.
    """
    for level, expected in zip(ours(images), theirs(images), strict=True):  # also warms up
        torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    return Comparison([(_seconds(ours, images), _seconds(theirs, images)) for _ in range(rounds)])


def timm_pair(variant: str, device: str) -> tuple[Pyramid, Pyramid]:
    """Return our backbone and that of timm, with the same weights."""
    import timm

    ours = create_backbone(variant, level_norm=False).to(device).eval()  # timm has no level norms
    theirs: Any = timm.create_model(f"twins_{variant}", pretrained=False).to(device).eval()
    load_weights(ours, theirs.state_dict())
    return ours, partial(theirs.forward_intermediates, norm=False, intermediates_only=True)


def _seconds(net: Pyramid, images: Tensor) -> float:
    start = time.perf_counter()
    net(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
