"""What levels see: their first three principal components as colours, beside the photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TwinsError
from .prepare import Protocol, decode
from .reader import Features


def draw_preview(features: Features, row: int) -> np.ndarray:
    """The photo as the model saw it, and each level beside it, finest first.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        TwinsError: where the image is unreadable by now, or was from the start.
    """
    entry = features.entry(row)
    preparation = features.manifest["preparation"]
    protocol = Protocol(preparation["protocol"], preparation["size"], preparation["upright"])
    decoded = decode(entry["path"], protocol)
    if decoded.pixels is None:
        raise TwinsError(f"{entry['path']} can't be read ({decoded.error}): a preview needs the photo")
    photo = decoded.pixels.permute(2, 0, 1)
    height, width = photo.shape[1:]
    panels = [photo]
    for level in features.manifest["model"]["levels"]:
        cells = torch.from_numpy(features.map(row, level["name"])).float()
        # The padding of images of many sizes is not looked at.
        cells = cells[:, : -(-height // level["stride"]), : -(-width // level["stride"])]
        colours = F.interpolate(principal_colours(cells)[None], scale_factor=level["stride"], mode="nearest")[0]
        panels.append((255 * colours[:, :height, :width]).round().to(torch.uint8))
    return torch.cat(panels, dim=2).permute(1, 2, 0).numpy()


def principal_colours(cells: Tensor) -> Tensor:
    """A map's first three principal components, each stretched so that 1 % of the cells are black and 1 % full.

    Args:
        cells: (C, H, W).

    Returns:
        (3, H, W) in 0..1: red is the first component; each is turned so that its largest weight is positive.
    """
    channels, height, width = cells.shape
    rows = cells.reshape(channels, -1).T.double()
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)  # rising
    vectors = vectors.flip(1)[:, :3]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    values = rows @ (vectors * largest.sign())  # (H*W, up to 3)
    values = F.pad(values, (0, 3 - values.shape[1]))
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)
    values = (values - low) / (high - low).clamp_min(1e-12)
    return values.clamp(0, 1).T.reshape(3, height, width).float()


def preview_path(folder: Path, row: int) -> Path:
    """Where the preview of an image lies."""
    return folder / "preview" / f"{row:08d}.jpg"
