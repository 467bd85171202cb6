"""Preprocessing of images for a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an RGB image: resize, crop the centre, and normalise as (pixels / 255 - mean) / std.

    Attributes:
        short_side: Length of the short side after resizing, in pixels. The aspect ratio is kept.
        long_side: Maximum length of the long side, which takes precedence over `short_side`; `None` for no maximum.
        crop: Side of the square centre crop in pixels; `None` keeps the whole image.
        interpolation: Interpolation for resizing, "bicubic" or "bilinear".
        mean: Mean of each channel, for pixels in 0..1.
        std: Standard deviation of each channel, for pixels in 0..1.
    """

    short_side: int
    long_side: int | None
    crop: int | None
    interpolation: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


OFFICIAL_PREPROCESSING = Preprocessing(short_side=256, long_side=None, crop=224, interpolation="bicubic")
TIMM_PREPROCESSING = Preprocessing(short_side=248, long_side=None, crop=224, interpolation="bicubic")  # 224 / 0.9
