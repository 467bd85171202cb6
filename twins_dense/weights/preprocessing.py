"""How images are prepared for a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """What to do with an RGB image before a model sees it; then its pixels are scaled to 0..1, less `mean`, by `std`.

    Attributes:
        short_side: the image is resized to this short side, in pixels, keeping its ratio.
        long_side: limit of the long side, which wins over `short_side`; `None` for no limit.
        crop: side of the square that is cut from the middle; `None` takes the whole image.
        interpolation: of resizing.
    """

    short_side: int
    long_side: int | None
    crop: int | None
    interpolation: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


OFFICIAL_PREPROCESSING = Preprocessing(short_side=256, long_side=None, crop=224, interpolation="bicubic")
TIMM_PREPROCESSING = Preprocessing(short_side=248, long_side=None, crop=224, interpolation="bicubic")  # 224 / 0.9
