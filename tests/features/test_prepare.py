"""Prepared images have the same pixels as with torchvision, and known positions in the photo."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_fixtures import photo
from PIL import Image, ImageOps

from twins_dense.features.prepare import Protocol, decode
from twins_dense.imagenet.transforms import image_transform
from twins_dense.weights.preprocessing import Preprocessing


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 97), (131, 70), (300, 65), (33, 50)])
@pytest.mark.parametrize("name", ["crop", "imagenet"])
def test_geometry(height: int, width: int, name: str, tmp_path: Path) -> None:
    """The pixels equal those of torchvision, and the geometry maps a pixel of the crop back to the photo."""
    protocol = Protocol(name, 64)
    image = photo(1, height, width)
    pixels, geometry = protocol.apply(image)
    transform = image_transform(Preprocessing(protocol.short_side, None, 64, "bicubic", (0, 0, 0), (1, 1, 1)))
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1) / 255, transform(image))
    assert (geometry.height, geometry.width) == (height, width)
    ramp = Image.fromarray(np.repeat(np.linspace(0, 250, width)[None], height, 0).astype(np.uint8)).convert("RGB")
    value = protocol.apply(ramp)[0][30, 30, 0]
    x = (30.5 + geometry.crop_left) * width / geometry.resized_width - 0.5
    assert value == pytest.approx(250 * x / (width - 1), abs=2)


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photo(2, 70, 101).save(tmp_path / "a.png", exif=exif)
    turned = decode(str(tmp_path / "a.png"), Protocol("native", None, upright=True))
    stored = decode(str(tmp_path / "a.png"), Protocol("native", None, upright=False))
    assert turned.pixels is not None and stored.pixels is not None
    assert torch.equal(turned.pixels, stored.pixels.rot90(-1))


def test_odd_exif(tmp_path: Path) -> None:
    """Some cameras write the resolution unit as a fraction, which must not affect the orientation."""
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 2)
    tiff += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0128, 5, 1, 38)
    tiff += struct.pack("<III", 0, 2, 1)
    image = photo(3, 90, 70)
    image.save(tmp_path / "odd.png", exif=b"Exif\0\0" + tiff)
    decoded = decode(str(tmp_path / "odd.png"), Protocol("native", None))
    assert decoded.error is None and decoded.pixels is not None
    np.testing.assert_array_equal(decoded.pixels.numpy(), np.rot90(np.asarray(image), 3))


@pytest.mark.parametrize("orientation", range(9))
def test_every_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(3, 90, 70)
    image.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    decoded = decode(str(tmp_path / "photo.png"), Protocol("native", None))
    assert decoded.pixels is not None
    np.testing.assert_array_equal(decoded.pixels.numpy(), expected)
