"""Draw images with the first three principal components of each level as colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import TwinsError
from .prepare import Protocol, decode
from .reader import Features

_JPEG_SIDE = 65_500  # pixels: the largest width or height that JPEG allows


def write_previews(features: Features, count: int) -> list[Path]:
    """Draw the first `count` readable images as JPEG files in the folder `preview`, and return their paths."""
    paths = []
    for row in features.readable().rows[:count].tolist():
        path = features.folder / "preview" / f"{row:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(draw_preview(features, row))
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))  # smaller pictures keep their size
        picture.save(path, quality=92)
        paths.append(path)
    return paths


def draw_preview(features: Features, row: int) -> np.ndarray:
    """Draw an image as the model saw it, with its levels to the right, finest first.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        TwinsError: If the image has no features, or can no longer be read.
    """
    entry = features.entry(row)
    preparation = features.manifest["preparation"]
    protocol = Protocol(preparation["protocol"], preparation["size"], preparation["upright"])
    decoded = decode(entry["path"], protocol)
    if decoded.pixels is None:
        raise TwinsError(f"{entry['path']} cannot be read ({decoded.error}): a preview needs the image")
    photo = decoded.pixels.permute(2, 0, 1)
    height, width = photo.shape[1:]
    panels = [photo]
    for level in features.manifest["model"]["levels"]:
        cells = torch.from_numpy(features.map(row, level["name"])).float()
        # Leave out the padding of images of different sizes.
        cells = cells[:, : -(-height // level["stride"]), : -(-width // level["stride"])]
        colours = F.interpolate(principal_colours(cells)[None], scale_factor=level["stride"], mode="nearest")[0]
        panels.append((255 * colours[:, :height, :width]).round().to(torch.uint8))
    return torch.cat(panels, dim=2).permute(1, 2, 0).numpy()


def principal_colours(cells: Tensor) -> Tensor:
    """Return the first three principal components of a map as red, green and blue.

    Each component is stretched so that the lowest 1 % of the cells become 0 and the highest 1 % become 1. Its sign is
    chosen so that its largest weight is positive.

    Args:
        cells: Map (C, H, W) of one level.

    Returns:
        (3, H, W) in 0..1.
    """
    channels, height, width = cells.shape
    rows = cells.reshape(channels, -1).T.double()
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)  # in ascending order
    vectors = vectors.flip(1)[:, :3]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    values = rows @ (vectors * largest.sign())  # (H*W, up to 3)
    values = F.pad(values, (0, 3 - values.shape[1]))
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)
    values = (values - low) / (high - low).clamp_min(1e-12)
    return values.clamp(0, 1).T.reshape(3, height, width).float()
