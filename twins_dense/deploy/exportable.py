"""A trained detector or segmentor in the form that can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
SIZE_STEP = 32  # sides of images are multiples of this number of pixels


@dataclass(frozen=True)
class Exportable:
    """A trained detector or segmentor for export, from `Engine.exportable`.

    `net` and `reference` take the same two inputs: an image, float32 (1, 3, H, W), RGB in 0..255, whose sides are
    multiples of 32, and its size without padding at the bottom and right, int64 (2,), height and width.

    Attributes:
        net: The model with a forward pass that `torch.export` accepts at dynamic sizes; on the CPU, in eval mode.
        reference: The forward pass of the framework itself, on the same weights, to compare `net` with.
        outputs: Names of the outputs, in order. Detectors: `boxes` (N, 4) in pixels of the input, `scores` (N,) in
            descending order, `labels` (N,) from 0 and, for Mask R-CNN, `masks` (N, 28, 28), the probabilities inside
            each box. Candidates that do not exist have the score 0. Segmentors: `logits` (1, K, H, W).
        about: Description of the model for the metadata of the file: plain data, with `kind`, `classes`, `resize`, ….
    """

    net: nn.Module
    reference: Callable[[Tensor, Tensor], Outputs]
    outputs: tuple[str, ...]
    about: Mapping[str, Any]
