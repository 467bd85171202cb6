"""Draw boxes, masks, names, scores and classes on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks


def draw_instances(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    scores: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """Draw the boxes, names, scores and masks of instances, with one colour per class.

    Args:
        image: uint8 (3, H, W) RGB; not modified.
        boxes: (N, 4), each x1, y1, x2, y2 in pixels.
        labels: (N,) indices into `class_names`.
        class_names: Names of the classes.
        scores: (N,) in 0..1, drawn after the names.
        masks: bool (N, H, W).

    Returns:
        uint8 (3, H, W) RGB.
    """
    if len(boxes) == 0:
        return image.clone()
    # These colours are dark enough for white text.
    palette = colormaps["tab10"].colors + colormaps["Dark2"].colors  # type: ignore[attr-defined]
    colors = [tuple(round(255 * c) for c in palette[label % len(palette)]) for label in labels.tolist()]
    texts = [class_names[label] for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    if masks is not None:
        image = draw_segmentation_masks(image, masks.bool(), alpha=0.5, colors=colors)
    # Text and lines scale with the image, so that they are readable on thumbnails and on photos.
    side = min(image.shape[1:])
    return draw_bounding_boxes(
        image,
        boxes.round().to(torch.int64),
        labels=texts,
        colors=colors,
        label_colors="white",
        label_background_colors=colors,
        fill_labels=True,
        width=max(1, side // 200),
        font=findfont("DejaVu Sans"),  # installed with matplotlib
        font_size=max(8, side // 30),
    )


def draw_classes(image: np.ndarray, classes: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Tint every pixel with the colour of its class.

    Args:
        image: uint8 RGB (H, W, 3).
        classes: (H, W) indices into `palette`.
        palette: One (R, G, B) in 0..255 per class.

    Returns:
        uint8 RGB (H, W, 3).
    """
    colors = np.asarray(palette, dtype=np.uint16)[classes]
    return ((image + colors) // 2).astype(np.uint8)


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
    font = ImageFont.truetype(findfont("DejaVu Sans"), 14)
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
