"""Prediction on tiles and on several views of an image, and the merging of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import TwinsError
from ..frameworks.prediction import Detector, Instances, MaskCrop, Masks, Segmentor

_MERGE_IOU = 0.5  # detectors drop overlapping boxes of a class at the same value
_CUT_SHARE = 0.5  # of the area of a cut object that a better detection has to cover to replace it
_MARGIN = 4  # pixels; boxes that end this close to the inner edge of a tile may be cut
_WHOLE_SIDE = 800  # smallest short side of the whole image beside its tiles

Detect = Callable[[Sequence[np.ndarray]], list[Instances]]


class View(NamedTuple):
    """A way to look at an image: the factor of its size, and whether it is flipped horizontally."""

    scale: float = 1.0
    flip: bool = False


def parse_views(tta: str | Sequence[str | float] | None) -> list[View]:
    """Return the views of test-time augmentation; the unchanged image comes first.

    Args:
        tta: "flip" and factors of the image size, in a sequence or separated by commas, such as "flip,0.8,1.25".

    Raises:
        TwinsError: for anything else.
    """
    parts = tta.split(",") if isinstance(tta, str) else [] if tta is None else [*tta]
    scales = {1.0: None}
    for part in parts:
        if part == "flip":
            continue
        try:
            scale = float(part)
        except (TypeError, ValueError):
            scale = 0.0
        if not 0.1 <= scale <= 10:
            raise TwinsError(f"tta={tta!r} has {part!r}: choose 'flip' and factors of the image size in 0.1..10")
        scales[scale] = None
    return [View(scale, flip) for scale in scales for flip in ((False, True) if "flip" in parts else (False,))]


def detect_views(
    detector: Detector, images: Sequence[np.ndarray], score: float, views: Sequence[View]
) -> list[Instances]:
    """Detect objects in every view of images of one size, and merge what is found in each image."""
    parts: list[list[Instances]] = [[] for _ in images]
    for view in views:
        seen = [np.ascontiguousarray(image[:, ::-1]) for image in images] if view.flip else images
        for part, found in zip(parts, detector(seen, score=score, scale=view.scale), strict=True):
            part.append(_flipped(found, images[0].shape[1]) if view.flip else found)
    return [part[0] if len(part) == 1 else merge(part) for part in parts]


def segment_views(segmentor: Segmentor, images: Sequence[np.ndarray], views: Sequence[View]) -> list[Tensor]:
    """Return the logits of images of one size, averaged over the views."""
    total: list[Tensor] = []
    for view in views:
        seen = [np.ascontiguousarray(image[:, ::-1]) for image in images] if view.flip else images
        found = [logits.flip(-1) if view.flip else logits for logits in segmentor(seen, scale=view.scale)]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total if len(views) == 1 else [logits / len(views) for logits in total]


def detect_tiles(detect: Detect, image: np.ndarray, *, tile: int, overlap: float, batch_size: int) -> Instances:
    """Detect objects in overlapping tiles of an image and in the whole image, and merge what is found.

    The whole image, shrunk to a short side of `tile` pixels (800 at least), is there for objects that are larger than
    the tiles. A detection that ends at the inner edge of a tile is dropped if another tile shows the same place with
    room around it, and otherwise gives way to any whole detection that covers half of it.

    Args:
        detect: Finds the objects in images of one size.
        image: uint8 RGB (H, W, 3).
        tile: Side of the tiles in pixels.
        overlap: Overlap of neighbouring tiles as a fraction of their side. Smaller objects are whole in some tile.
        batch_size: Number of tiles to compute together.
    """
    height, width = image.shape[:2]
    corners = [(y, x) for y in tile_starts(height, tile, overlap) for x in tile_starts(width, tile, overlap)]
    if len(corners) == 1:
        return detect([image])[0]
    # Inner limits of each tile: x1, y1, x2, y2 that boxes must not reach to be whole. The borders of the image are no
    # inner edges.
    limits = np.array(
        [
            (
                x + _MARGIN if x else -np.inf,
                y + _MARGIN if y else -np.inf,
                x + tile - _MARGIN if x + tile < width else np.inf,
                y + tile - _MARGIN if y + tile < height else np.inf,
            )
            for y, x in corners
        ]
    )
    parts, cuts = [_detect_whole(detect, image, max(tile, _WHOLE_SIDE))], []
    cuts.append(np.zeros(len(parts[0]), dtype=bool))
    for start in range(0, len(corners), batch_size):
        some = corners[start : start + batch_size]
        tiles = [np.ascontiguousarray(image[y : y + tile, x : x + tile]) for y, x in some]
        for number, ((y, x), found) in enumerate(zip(some, detect(tiles), strict=True), start):
            found = _shifted(found, y, x, height, width)
            cut = ~_inside(found.boxes, limits[number])
            seen_whole = np.zeros(len(found), dtype=bool)
            for limit in limits:
                seen_whole[cut] |= _inside(found.boxes[cut], limit)
            keep = np.flatnonzero(~(cut & seen_whole))
            parts.append(found.select(keep))
            cuts.append(cut[keep])
    return merge(parts, cuts)


def segment_tiles(
    segment: Callable[[Sequence[np.ndarray]], list[Tensor]],
    image: np.ndarray,
    *,
    tile: int,
    overlap: float,
    batch_size: int,
) -> Iterator[Tensor]:
    """Yield the logits of an image from top to bottom in bands (K, h, W), averaged over overlapping tiles.

    Only the logits of one row of tiles are in memory at a time.

    Args:
        segment: Computes the logits of images of one size.
        image: uint8 RGB (H, W, 3).
        tile: Side of the tiles in pixels.
        overlap: Overlap of neighbouring tiles as a fraction of their side.
        batch_size: Number of tiles to compute together.
    """
    height, width = image.shape[:2]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    rest: Tensor | None = None  # sums of the logits below the rows that are done, and the number of summands
    for top, below in zip(rows, [*rows[1:], height], strict=True):
        band: Tensor | None = None
        for start in range(0, len(columns), batch_size):
            lefts = columns[start : start + batch_size]
            found = segment([np.ascontiguousarray(image[top : top + tile, x : x + tile]) for x in lefts])
            for x, logits in zip(lefts, found, strict=True):
                if band is None:
                    band = logits.new_zeros((len(logits) + 1, logits.shape[1], width))
                band[:-1, :, x : x + tile] += logits
                band[-1, :, x : x + tile] += 1
        assert band is not None
        if rest is not None:
            band[:, : rest.shape[1]] += rest
        done, rest = band[:, : below - top], band[:, below - top :].clone()
        yield done[:-1] / done[-1]


def tile_starts(side: int, tile: int, overlap: float) -> list[int]:
    """Return the first pixels of the tiles along one side of an image; the last tile ends with the image."""
    if side <= tile:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    return [*range(0, side - tile, stride), side - tile]


def merge(parts: Sequence[Instances], cuts: Sequence[np.ndarray] | None = None) -> Instances:
    """Merge the detections of several views or tiles of an image by non-maximum suppression within each class.

    Detections of the same part never suppress each other, because the detector has already decided about them.

    Args:
        parts: The detections of each view or tile, in pixels of the image.
        cuts: For each part, which detections may be cut, bool (N,). They come after all others, and are also suppressed
            by a detection that covers a large part of them.

    Returns:
        The remaining detections by descending score.
    """
    from torchvision.ops import box_iou

    boxes = torch.from_numpy(np.concatenate([part.boxes for part in parts]))
    scores = np.concatenate([part.scores for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cut = np.zeros(len(scores), dtype=bool) if cuts is None else np.concatenate(cuts)
    areas = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)).numpy()
    kept: list[int] = []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        left = left[np.lexsort((-scores[left], cut[left]))]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(int(best))
            iou = box_iou(boxes[best][None], boxes[left])[0].numpy()
            shared = iou * (areas[best] + areas[left]) / (1 + iou)  # area of the intersection
            covered = cut[left] & (shared > _CUT_SHARE * areas[left])
            left = left[(source[left] == source[best]) | ~((iou > _MERGE_IOU) | covered)]
    order = np.array(sorted(kept, key=lambda i: -scores[i]), dtype=np.int64)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    masks = None
    if all(part.masks is not None for part in parts):
        first = parts[0].masks
        assert first is not None
        crops = [parts[source[i]].masks.crops[i - starts[source[i]]] for i in order.tolist()]
        masks = Masks(crops, first.height, first.width)
    return Instances(boxes.numpy()[order], scores[order], labels[order], masks)


def _detect_whole(detect: Detect, image: np.ndarray, short_side: int) -> Instances:
    """Detect objects in an image that is first shrunk to a short side, and return them in its own pixels."""
    height, width = image.shape[:2]
    factor = short_side / min(height, width)
    if factor >= 1:
        return detect([image])[0]
    small = (round(width * factor), round(height * factor))
    found = detect([np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))])[0]
    x_factor, y_factor = width / small[0], height / small[1]
    boxes = found.boxes * np.array([x_factor, y_factor] * 2, dtype=np.float32)
    masks = None
    if found.masks is not None:
        crops = [_enlarged(crop, x_factor, y_factor, height, width) for crop in found.masks.crops]
        masks = Masks(crops, height, width)
    return Instances(boxes, found.scores, found.labels, masks)


def _enlarged(crop: MaskCrop, x_factor: float, y_factor: float, height: int, width: int) -> MaskCrop:
    rows, columns = crop.pixels.shape
    top, left = round(crop.top * y_factor), round(crop.left * x_factor)
    bottom = min(height, round((crop.top + rows) * y_factor))
    right = min(width, round((crop.left + columns) * x_factor))
    if 0 in crop.pixels.shape:
        return MaskCrop(top, left, crop.pixels)
    large = Image.fromarray(crop.pixels.astype(np.uint8) * 255).resize((right - left, bottom - top))
    return MaskCrop(top, left, np.asarray(large) > 127)


def _shifted(found: Instances, y: int, x: int, height: int, width: int) -> Instances:
    """Return the detections of a tile in pixels of the image."""
    masks = None
    if found.masks is not None:
        masks = Masks((MaskCrop(c.top + y, c.left + x, c.pixels) for c in found.masks.crops), height, width)
    return Instances(found.boxes + np.array([x, y] * 2, dtype=np.float32), found.scores, found.labels, masks)


def _flipped(found: Instances, width: int) -> Instances:
    boxes = found.boxes.copy()
    boxes[:, [0, 2]] = width - found.boxes[:, [2, 0]]
    masks = None
    if found.masks is not None:
        crops = (MaskCrop(c.top, width - c.left - c.pixels.shape[1], c.pixels[:, ::-1]) for c in found.masks.crops)
        masks = Masks(crops, found.masks.height, found.masks.width)
    return Instances(boxes, found.scores, found.labels, masks)


def _inside(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return which boxes lie inside limits x1, y1, x2, y2."""
    return np.all((boxes[:, :2] >= limit[:2]) & (boxes[:, 2:] <= limit[2:]), axis=1)
