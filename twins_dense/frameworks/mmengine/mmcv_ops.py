"""A replacement for `mmcv.ops` in mmcv-lite, the edition of mmcv on PyPI that has no compiled operators.

mmsegmentation needs two operators at import time; all others are optional, and it does without them if importing them
raises ModuleNotFoundError. This module provides the two from torch and torchvision functions, and raises that error for
every other name.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as focal_loss_of_targets


def stand_in() -> None:
    """Replace `mmcv.ops` with this module, unless mmcv has its compiled operators."""
    if importlib.util.find_spec("mmcv._ext") is None:
        import mmcv

        mmcv.ops = sys.modules["mmcv.ops"] = sys.modules[__name__]


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **options: Any) -> Tensor:
    """Sample a map at points by bilinear interpolation.

    Args:
        input: (N, C, H, W).
        points: (N, P, 2) or (N, P, Q, 2), x and y in 0..1 from the top left to the bottom right corner.
        align_corners: Whether 0 and 1 are the centres of the outermost cells, instead of their outer edges.
        options: Further arguments of `torch.nn.functional.grid_sample`.

    Returns:
        (N, C, P) or (N, C, P, Q).
    """
    grid = points if points.dim() == 4 else points[:, :, None]
    samples = F.grid_sample(input, 2 * grid - 1, align_corners=align_corners, **options)
    return samples if points.dim() == 4 else samples[..., 0]


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) with one sigmoid per class.

    Args:
        input: (N, C) logits.
        target: (N,) classes in 0..C; C stands for the background, which has no sigmoid.
        gamma: Exponent that reduces the weight of well-classified examples.
        alpha: Weight of the sigmoid of the target class; the others have the weight 1 - alpha.
        weight: Class weights; not supported, because mmsegmentation applies them itself.
        reduction: "none" for (N, C), "sum", or "mean" for the sum divided by N.
    """
    assert weight is None, "the stand-in for mmcv.ops has no class weights"
    num_classes = input.shape[1]
    targets = F.one_hot(target, num_classes + 1)[:, :num_classes].to(input.dtype)
    loss = focal_loss_of_targets(input, targets, alpha=alpha, gamma=gamma)
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / len(input)}[reduction]


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ModuleNotFoundError(f"mmcv.ops.{name} is not available: mmcv-lite has no compiled operators", name="mmcv")
