"""Image files: pixels are read exactly, in RGB, as they are stored, and bad files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import twins_dense
from twins_dense.data.image_files import open_image, read_image
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 47, 31


class TestReadImage:
    @pytest.mark.parametrize("suffix", ["png", "bmp"])
    def test_rgb_is_exact(self, tmp_path: Path, suffix: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(pixels).save(path)
        image = read_image(path)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        np.testing.assert_array_equal(image, pixels)

    @pytest.mark.parametrize(
        ("mode", "colour", "suffix", "expected"),
        [
            ("L", 90, "png", (90, 90, 90)),
            ("L", 90, "jpg", (90, 90, 90)),
            ("RGBA", (10, 200, 30, 128), "png", (10, 200, 30)),
            ("LA", (70, 9), "png", (70, 70, 70)),
            ("1", 1, "png", (255, 255, 255)),
            ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ],
    )
    def test_other_modes(
        self, tmp_path: Path, mode: str, colour: Any, suffix: str, expected: tuple[int, int, int]
    ) -> None:
        path = tmp_path / f"image.{suffix}"
        Image.new(mode, (WIDTH, HEIGHT), colour).save(path)
        with Image.open(path) as stored:
            assert stored.mode == mode
        image = read_image(path)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(image.astype(int) - expected).max() <= 2

    def test_palette(self, tmp_path: Path) -> None:
        Image.new("RGB", (WIDTH, HEIGHT), (200, 40, 60)).convert("P", palette=Image.Palette.ADAPTIVE).save(
            tmp_path / "image.png"
        )
        np.testing.assert_array_equal(read_image(tmp_path / "image.png")[3, 5], (200, 40, 60))

    def test_exif_orientation_is_not_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # "turn by 90 degrees to show"
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "image.jpg", exif=exif)
        assert read_image(tmp_path / "image.jpg").shape == (HEIGHT, WIDTH, 3)

    def test_unreadable(self, tmp_path: Path) -> None:
        path = tmp_path / "image.jpg"
        for content in (None, b"", b"no image"):
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(TwinsError) as caught:
                read_image(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_gray_of_16_bits_keeps_its_range(tmp_path: Path) -> None:
    levels = np.array([[0, 256, 32768], [40000, 65280, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    expected = np.array([[0, 1, 128], [156, 255, 255]])
    assert (read_image(tmp_path / "deep.png") == expected[:, :, None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_uncompressed_tiff_files_are_turned_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)[: 2 + (mode == "RGB")], dtype=np.uint8)
    for suffix in ("png", "tiff"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"image.{suffix}", exif=exif)
    with open_image(tmp_path / "image.tiff") as image:
        opened = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(opened, read_image(tmp_path / "image.png", upright=True))
    np.testing.assert_array_equal(opened, read_image(tmp_path / "image.tiff"))


def test_no_image_is_opened_by_name() -> None:
    package = Path(twins_dense.__file__).parent
    opened = {
        line.strip()
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "Image.open(" in line
    }
    assert opened == {
        'with Path(path).open("rb") as file, Image.open(file) as image:',
        "with Image.open(source) as image:",  # an open file
        "with Image.open(io.BytesIO(content)) as image:",
    }
