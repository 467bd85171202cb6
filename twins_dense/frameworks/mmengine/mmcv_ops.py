"""Stands in for `mmcv.ops` where mmcv is installed without its compiled operators (mmcv-lite, the one from PyPI).

mmsegmentation imports two of the operators when it is imported itself; others it only tries, and does without where
that raises ModuleNotFoundError. So this module has the two, by torch and torchvision, and raises for every other name.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as focal_loss_of_targets


def stand_in() -> None:
    """Put this module in the place of `mmcv.ops`, unless the real one is there."""
    if importlib.util.find_spec("mmcv._ext") is None:
        import mmcv

        mmcv.ops = sys.modules["mmcv.ops"] = sys.modules[__name__]


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **options: Any) -> Tensor:
    """Bilinear samples of a map at points.

    Args:
        input: (N, C, H, W).
        points: (N, P, 2) or (N, P, Q, 2), x and y in 0..1 from the upper left to the lower right corner.
        align_corners: whether 0 and 1 are the middles of the outermost cells, instead of their outer edges.
        options: further arguments of `torch.nn.functional.grid_sample`.

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
    """Focal loss (arXiv 1708.02002) of one sigmoid a class.

    Args:
        input: (N, C) logits.
        target: (N,) classes in 0..C; C belongs to none of the sigmoids.
        gamma: exponent that turns down what is classified well.
        alpha: weight of the target's own sigmoid; the others have 1 - alpha.
        weight: of the classes, which mmsegmentation applies itself and never gives.
        reduction: "none" for (N, C); "sum"; "mean" for the sum over N.
    """
    assert weight is None, "the stand-in for mmcv.ops has no class weights"
    num_classes = input.shape[1]
    targets = F.one_hot(target, num_classes + 1)[:, :num_classes].to(input.dtype)
    loss = focal_loss_of_targets(input, targets, alpha=alpha, gamma=gamma)
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / len(input)}[reduction]


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ModuleNotFoundError(f"mmcv.ops.{name} is not here: mmcv-lite comes without compiled operators", name="mmcv")
