"""Pictures with details, for tests that compare images."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def picture(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Return clouds with details of several sizes, which differ completely between seeds."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 23, 41):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    pixels -= pixels.min()
    return Image.fromarray((pixels / pixels.max() * 220).astype(np.uint8))
