"""Steps of detectors that `torch.export` and the ONNX exporter accept at dynamic sizes, for both engines.

The number of boxes after each step depends on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import nms


def normalise(image: Tensor, size: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise an image (1, 3, H, W) and set its padding to zero.

    Args:
        image: Image, float32.
        size: Height and width without the padding at the bottom and right, int64 (2,).
        mean: Mean of each channel, (3,), in the units of the image.
        std: Standard deviation of each channel, (3,).
    """
    rows = torch.arange(image.shape[2], device=image.device)[:, None] < size[0]
    columns = torch.arange(image.shape[3], device=image.device)[None, :] < size[1]
    return torch.where(rows & columns, (image - mean[:, None, None]) / std[:, None, None], 0.0)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes (N, 4) to an image of the given height and width, int64 (2,)."""
    height, width = size.to(boxes.dtype).unbind()
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def keep_best(scores: Tensor, limit: int) -> Tensor:
    """Return the indices of the highest scores, in descending order, at most `limit`."""
    return scores.topk(torch.sym_min(limit, scores.shape[0])).indices


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Set the scores of boxes that overlap a box with a higher score to -1 (non-maximum suppression)."""
    # torchvision tells `torch.export` that at least two boxes are kept, and exported programs check that in every run.
    # These two boxes have no area, so they are always kept and suppress no others.
    boxes = torch.cat([boxes, boxes.new_zeros(2, 4)])
    padded = torch.cat([scores, scores.new_zeros(2)])
    kept = torch.zeros_like(padded).index_fill(0, nms(boxes, padded, iou_threshold), 1.0)
    return torch.where(kept[: scores.shape[0]] > 0, scores, -1.0)


def best_of_classes(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress boxes that overlap a better one of the same class, and return the best of the others.

    As in torchvision's `batched_nms`, the boxes of each class are moved to a place of their own.

    Args:
        boxes: Boxes (N, 4), not negative; N may be 0.
        scores: Scores (N,), above 0.
        labels: Classes (N,).
        iou_threshold: IoU above which the box with the lower score is dropped.
        limit: Largest number of boxes to return.

    Returns:
        Boxes, scores and labels by descending score. If there are none, a single box with the score 0, because not all
        runtimes accept empty tensors.
    """
    # With these rows, there are enough boxes for the top-k, whose k cannot depend on the image.
    boxes = torch.cat([boxes, boxes.new_zeros(limit, 4)])
    scores = torch.cat([scores, scores.new_zeros(limit)])
    labels = torch.cat([labels, labels.new_zeros(limit)])
    places = labels.to(boxes.dtype) * (boxes.max() + 1)
    best, order = suppress(boxes + places[:, None], scores, iou_threshold).topk(limit)
    found = torch.nonzero((best > 0) | (torch.arange(limit, device=best.device) == 0))[:, 0]
    order = order[found]
    return boxes[order], best[found], labels[order]


def levels_of(boxes: Tensor, num_levels: int, first: int, canonical_size: float, canonical_level: int) -> Tensor:
    """Return the pyramid level of each box, from 0, by equation 1 of the FPN paper (arXiv 1612.03144).

    Args:
        boxes: Boxes (N, 4) in pixels.
        num_levels: Number of levels.
        first: Base-2 logarithm of the stride of the first level.
        canonical_size: Side of a square box on the canonical level, in pixels.
        canonical_level: Base-2 logarithm of the stride of the canonical level.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    # The frameworks add 1e-6 (torchvision) or 1e-8 (detectron2) before rounding the level down.
    bounds = [canonical_size * 2 ** (first + level - canonical_level - 1e-6) for level in range(1, num_levels)]
    return (sides[:, None] >= torch.tensor(bounds, device=boxes.device)).sum(1)


def pool_levels(maps: Sequence[Tensor], boxes: Tensor, levels: Tensor, pool: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Pool each box from its own pyramid level.

    Args:
        maps: Pyramid levels.
        boxes: Boxes (N, 4) in pixels.
        levels: Level of each box, (N,).
        pool: Function from the number of a level and boxes with their image number, (M, 5), to features (M, C, h, w).

    Returns:
        Features (N, C, h, w).
    """
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    rows = [torch.nonzero(levels == level)[:, 0] for level in range(len(maps))]
    pooled = torch.cat([pool(level, rois[chosen]) for level, chosen in enumerate(rows)])
    order = torch.cat(rows)
    places = torch.zeros_like(levels).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    return pooled[places]
