"""Images shared by the tests of ImageNet validation."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

# 100 photos, one for every tenth class. Their licences do not permit us to distribute them.
IMAGENET_MINI = Path(os.environ.get("TWINS_DENSE_TEST_DATA", "real-photos")) / "imagenet_mini"


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    # Upscale the noise, because JPEG loses most of the noise between neighbouring pixels.
    pixels = torch.randint(0, 256, (height // 8 + 1, width // 8 + 1, channels), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.squeeze(2).numpy() if channels == 1 else pixels.numpy(), mode).resize((width, height))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=90, **options)
    return path
