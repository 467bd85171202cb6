"""Draw instances (contours, boxes, names, scores) and classes on images."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .coco import is_instance
from .coco_masks import decode_segmentation

ShowLabels = Literal["auto", "none", "all"]

# The colours of Okabe and Ito (2008), which people with colour vision deficiency can tell apart, without black.
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
_FILL = 0.3  # opacity of the inside of a mask
_SMALL = 384  # images with a smaller longest side are enlarged in comparisons
_GAP = 8  # pixels between pictures that stand side by side


def draw_instances(
    image: np.ndarray,
    boxes: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    scores: Any = None,
    masks: Any = None,
    show_labels: ShowLabels = "auto",
) -> np.ndarray:
    """Draw instances on an image, each in its own colour.

    An instance with a mask is drawn as a contour and a translucent area, an instance without one (or with an empty one)
    as a box. Lines are thinner for small objects, which are drawn on top of large ones. The colour depends only on the
    position in the list. Boxes, labels, scores and masks may be arrays, lists or CPU tensors.

    Args:
        image: uint8 RGB (H, W, 3); not modified.
        boxes: (N, 4), each x1, y1, x2, y2 in pixels.
        labels: (N,) indices into `class_names`.
        class_names: Names of the classes.
        scores: (N,) in 0..1, drawn after the names.
        masks: N masks, each (H, W), bool or uint8.
        show_labels: "auto" draws the names that need at most a quarter of the boxes of their objects and cover no other
            name, "all" draws every name, and "none" draws no name.

    Returns:
        uint8 RGB (H, W, 3).
    """
    picture = np.array(image, order="C")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0))
    order = np.argsort(-sides, kind="stable").tolist()
    outlines = [() if masks is None else _fill(picture, np.asarray(masks[i]), _color(i)) for i in order]
    # Outlines are drawn after all areas, so that no area covers them.
    for i, outline in zip(order, outlines, strict=True):
        width = round(min(sides[i] / 60, min(picture.shape[:2]) / 250))
        if len(outline):
            cv2.drawContours(picture, outline, -1, _color(i), max(1, width))
        else:
            left, top, right, bottom = _pixels(boxes[i], picture)
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), _color(i), max(1, width))
    if show_labels == "none" or not order:
        return picture
    names = [class_names[label] for label in np.asarray(labels).tolist()]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, np.asarray(scores).tolist(), strict=True)]
    return _draw_names(picture, boxes, names, order[::-1], everyone=show_labels == "all")


def coco_truth(
    annotations: Iterable[Mapping[str, Any]],
    category_ids: Sequence[int],
    height: int,
    width: int,
    *,
    with_masks: bool,
) -> dict[str, Any]:
    """Return the instances among COCO annotations of an image, without crowd regions, as `draw_comparison` takes them.

    Args:
        annotations: Entries of a COCO annotation file.
        category_ids: Category id of each label.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        with_masks: Whether to decode the masks; they are left out if an instance has none.
    """
    instances = [annotation for annotation in annotations if is_instance(annotation)]
    corners = np.array([annotation["bbox"] for annotation in instances], dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]  # COCO stores boxes as x, y, width, height
    label_of = {category: label for label, category in enumerate(category_ids)}
    truth = {"boxes": corners, "labels": [label_of[annotation["category_id"]] for annotation in instances]}
    if with_masks and all(annotation.get("segmentation") for annotation in instances):
        truth["masks"] = [decode_segmentation(annotation["segmentation"], height, width) for annotation in instances]
    return truth


def draw_comparison(
    image: np.ndarray,
    truth: Mapping[str, Any],
    prediction: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    show_labels: ShowLabels = "auto",
) -> np.ndarray:
    """Draw the ground truth (left) beside the prediction (right).

    Small images are enlarged by a whole number, so that both sides can be seen well.

    Args:
        image: uint8 RGB (H, W, 3).
        truth: `boxes`, `labels` and, if there are any, `masks`, as for `draw_instances`.
        prediction: The same, and `scores`.
        class_names: Names of the classes.
        show_labels: As for `draw_instances`.

    Returns:
        uint8 RGB (F * H, 2 * F * W + gap, 3), where F is the enlargement.
    """
    factor = -(-_SMALL // max(image.shape[:2]))

    def enlarge(array: Any) -> np.ndarray:
        return np.asarray(array).repeat(factor, axis=0).repeat(factor, axis=1)

    pictures = []
    for instances in (truth, prediction):
        masks = instances.get("masks")
        picture = draw_instances(
            enlarge(image),
            np.asarray(instances["boxes"]) * factor,
            instances["labels"],
            class_names,
            scores=instances.get("scores"),
            masks=None if masks is None else [enlarge(mask) for mask in masks],
            show_labels=show_labels,
        )
        pictures.append(picture)
    return side_by_side(*pictures)


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Join pictures of the same height from left to right, with white gaps; all are uint8 RGB (H, W, 3)."""
    gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)


def _color(index: int) -> tuple[int, ...]:
    """Return the colour of the instance at a position in the list; after seven colours, lighter ones follow."""
    white = 0.45 * (index // len(_COLORS) % 2)
    return tuple(round((1 - white) * value + white * 255) for value in _COLORS[index % len(_COLORS)])


def _pixels(box: np.ndarray, picture: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box in whole pixels, at least one in size and inside the picture."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = box.round()
    left, top = int(x1.clip(0, width - 1)), int(y1.clip(0, height - 1))
    return left, top, int(x2.clip(left + 1, width)), int(y2.clip(top + 1, height))


def _fill(picture: np.ndarray, mask: np.ndarray, color: tuple[int, ...]) -> Sequence[np.ndarray]:
    """Tint the inside of a mask in place; return its contours, whose points lie on the mask."""
    mask = np.ascontiguousarray(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)  # work on the part of the picture that the mask covers
    if not width:
        return ()
    inside = mask[top : top + height, left : left + width]
    part = picture[top : top + height, left : left + width]
    part[inside > 0] = (1 - _FILL) * part[inside > 0] + _FILL * np.array(color)
    return cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(left, top))[0]


def _draw_names(
    picture: np.ndarray, boxes: np.ndarray, names: Sequence[str], order: Sequence[int], everyone: bool
) -> np.ndarray:
    """Draw names where they cover no other name; those that come first in `order` choose their places first."""
    height, width = picture.shape[:2]
    taken = np.zeros((height, width), bool)
    result = Image.fromarray(picture)
    draw = ImageDraw.Draw(result)
    largest = max(11, min(height, width) // 35)
    smallest = max(9, largest // 2)
    for i in order:
        left, top, right, bottom = _pixels(boxes[i], picture)
        for size in range(largest, smallest - 1, -max(1, largest // 12)):
            font = _font(size)
            w, h = math.ceil(font.getlength(names[i])) + size // 2, sum(font.getmetrics())
            fits = w <= right - left and h <= (bottom - top) / 2 and 4 * w * h <= (right - left) * (bottom - top)
            if fits:
                break
        if not (fits or everyone):
            continue
        corners = [(x, y) for y in (top, bottom - h) for x in (left, right - w)]
        if not fits:
            corners = [(left, y) for y in (top - h, bottom, top)]
        places = [(min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))) for x, y in corners]
        free = [(x, y) for x, y in places if not taken[y : y + h, x : x + w].any()]
        if not (free or everyone):
            continue
        x, y = (free or places)[0]
        taken[y : y + h, x : x + w] = True
        red, green, blue = _color(i)
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=(red, green, blue))
        is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 128
        draw.text((x + size // 4, y), names[i], fill="black" if is_light else "white", font=font)
    return np.array(result)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)  # installed with matplotlib


def draw_classes(image: np.ndarray, classes: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Tint every pixel with the colour of its class, and draw the borders between classes in their full colours.

    Args:
        image: uint8 RGB (H, W, 3).
        classes: (H, W) indices into `palette`. Pixels with other values, such as 255, are not tinted.
        palette: One (R, G, B) in 0..255 per class.

    Returns:
        uint8 RGB (H, W, 3).
    """
    known = (classes >= 0) & (classes < len(palette))
    colors = np.asarray(palette, dtype=np.uint16)[np.where(known, classes, 0)]
    picture = np.where(known[..., None], (image + colors) // 2, image).astype(np.uint8)
    # A pixel lies on a border if its neighbourhood contains another class.
    width = max(1, min(classes.shape) // 400)
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    values = np.where(known, classes, len(palette)).astype(np.float32)
    border = known & (cv2.dilate(values, square) != cv2.erode(values, square))
    picture[border] = colors[border]
    return picture


def draw_legend(class_names: Sequence[str], palette: Sequence[Sequence[int]], first_value: int) -> np.ndarray:
    """Draw the colour of each class with its value in label files and its name, in columns of 30.

    Args:
        class_names: Names of the classes.
        palette: One (R, G, B) in 0..255 per class.
        first_value: Value of the first class in label files.

    Returns:
        uint8 RGB (H, W, 3).
    """
    row, swatch, rows = 22, 32, 30
    font = _font(14)
    texts = [f"{value} {name}" for value, name in enumerate(class_names, first_value)]
    width = swatch + 24 + round(max(font.getlength(text) for text in texts))
    size = (width * -(-len(texts) // rows), row * min(rows, len(texts)) + 8)
    legend = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(legend)
    for index, (text, color) in enumerate(zip(texts, palette, strict=True)):
        left, top = index // rows * width + 8, index % rows * row + 4
        draw.rectangle((left, top + 3, left + swatch - 8, top + row - 4), fill=tuple(color), outline="black")
        draw.text((left + swatch, top + 2), text, fill="black", font=font)
    return np.asarray(legend)
