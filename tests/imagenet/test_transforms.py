"""The transforms are bit-exact with those of timm and torchvision."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from imagenet_fixtures import IMAGENET_MINI, noise
from PIL import Image
from torchvision.models import Swin_T_Weights

from twins_dense.imagenet.transforms import VALIDATION_PROTOCOLS, image_transform
from twins_dense.weights.catalog import CATALOG

SIZES = [(500, 375), (375, 500), (224, 224), (256, 256), (1023, 257), (100, 333), (257, 255), (248, 249)]


def images_of_many_sizes() -> list[Image.Image]:
    photos = sorted(IMAGENET_MINI.glob("val/*/*.JPEG")) if IMAGENET_MINI.is_dir() else []
    return [noise(*size, seed=i) for i, size in enumerate(SIZES)] + [
        Image.open(photo).convert("RGB") for photo in photos
    ]


@pytest.mark.parametrize(("protocol", "crop_pct"), [("official", 0.875), ("timm", 0.9)])
def test_transform_is_bit_exact_with_timm(protocol: str, crop_pct: float) -> None:
    with torch.device("meta"):
        config = timm.data.resolve_data_config({}, model=timm.create_model("twins_svt_small"))
    assert config["crop_pct"] == 0.9
    theirs = timm.data.create_transform(**{**config, "crop_pct": crop_pct}, is_training=False)
    ours = image_transform(VALIDATION_PROTOCOLS[protocol])
    for image in images_of_many_sizes():
        found = ours(image)
        assert found.shape == (3, 224, 224)
        assert torch.equal(found, theirs(image)), image.size


@pytest.mark.parametrize(("protocol", "resize_size"), [("official", 256), ("timm", 248)])
def test_transform_is_bit_exact_with_torchvision(protocol: str, resize_size: int) -> None:
    """Compare with a torchvision preset that also resizes with bicubic interpolation."""
    theirs = Swin_T_Weights.IMAGENET1K_V1.transforms(resize_size=resize_size)
    assert theirs.crop_size == [224] and theirs.interpolation.value == "bicubic"
    ours = image_transform(VALIDATION_PROTOCOLS[protocol])
    for image in images_of_many_sizes():
        assert torch.equal(ours(image), theirs(image)), image.size


def test_the_protocol_is_that_of_the_weights() -> None:
    """For timm's weights, the catalog has the same preprocessing as timm."""
    for name, spec in CATALOG.items():
        if name.endswith("-timm"):
            config = timm.get_pretrained_cfg(f"twins_{spec.variant}.in1k")
            assert spec.preprocessing.short_side == math.floor(224 / config.crop_pct)
            assert (spec.preprocessing.interpolation, spec.preprocessing.crop) == (config.interpolation, 224)
            assert (spec.preprocessing.mean, spec.preprocessing.std) == (config.mean, config.std)
            assert spec.preprocessing == VALIDATION_PROTOCOLS["timm"]
        elif spec.task == "classification":
            assert spec.preprocessing == VALIDATION_PROTOCOLS["official"]
