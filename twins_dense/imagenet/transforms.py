"""Image transforms with which the published ImageNet scores were measured."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torchvision import transforms

from ..weights.preprocessing import OFFICIAL_PREPROCESSING, TIMM_PREPROCESSING, Preprocessing

VALIDATION_PROTOCOLS = {"official": OFFICIAL_PREPROCESSING, "timm": TIMM_PREPROCESSING}


def image_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Return a function that turns an RGB image into a classifier's input: float32 (3, crop, crop), normalised."""
    assert preprocessing.crop is not None, "classifiers need a crop"
    return transforms.Compose(
        [
            transforms.Resize(
                preprocessing.short_side,
                transforms.InterpolationMode(preprocessing.interpolation),
                preprocessing.long_side,
            ),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
