"""Label maps in any format: what the check accepts, training reads with exactly the values that were saved."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from twins_dense.data.image_files import read_image
from twins_dense.data.label_maps import find_problems

WIDTH, HEIGHT = 37, 23
LABELS = (np.arange(HEIGHT * WIDTH) // 9 % 3).astype(np.uint8).reshape(HEIGHT, WIDTH)
RNG = np.random.default_rng(0)


class Written(NamedTuple):
    """A label map in a file, and whether it has to be accepted."""

    path: Path
    labels: np.ndarray
    accepted: bool


def gray_png(labels: np.ndarray, bits: int) -> bytes:
    """Return a gray PNG with 1, 2, 4, 8 or 16 bits per pixel; Pillow writes no gray PNG with 2 or 4."""
    rows = b""
    for row in labels:
        line = "".join(f"{value:0{bits}b}" for value in row)
        rows += b"\0" + int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8), "big")
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def written(folder: Path) -> Iterator[Written]:
    """Write a label map of the classes 0, 1, 2 in every way."""
    for bits in (1, 2, 4, 8, 16):
        labels = LABELS % 2 if bits == 1 else LABELS
        path = folder / f"{bits}bits.png"
        path.write_bytes(gray_png(labels, bits))
        yield Written(path, labels, bits in (1, 8))
    gray = Image.fromarray(LABELS)
    ways: list[tuple[str, str, dict[str, Any], bool]] = [
        ("plain.png", "PNG", {}, True),
        ("plain.bmp", "BMP", {}, True),
        ("plain.tif", "TIFF", {}, True),
        ("plain.pgm", "PPM", {}, True),
        ("jpeg.png", "JPEG", {"quality": 95}, False),
        ("jpeg.jpg", "JPEG", {"quality": 100, "subsampling": 0}, False),
        ("jp2.png", "JPEG2000", {}, False),
        ("webp.png", "WEBP", {"lossless": True}, False),
        ("gif.png", "GIF", {}, False),
    ]
    ways += [
        (f"{name}.tif", "TIFF", {"compression": name}, name not in ("jpeg", "webp"))
        for name in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "lzma", "jpeg")
    ]
    for name, kind, options, accepted in ways:
        gray.save(folder / name, kind, **options)
        yield Written(folder / name, LABELS, accepted)
    for mode in ("P", "LA", "RGB", "RGBA", "I", "I;16", "F", "CMYK"):
        image = gray.convert("I").convert(mode) if mode == "I;16" else gray.convert(mode)
        image.save(folder / f"mode{mode}.tif")
        yield Written(folder / f"mode{mode}.tif", LABELS, False)


def read_as_mmseg(path: Path) -> np.ndarray:
    """Read a label map like `LoadAnnotations` of mmseg: mmcv's Pillow backend, unchanged, as uint8."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.array(image).squeeze().astype(np.uint8)


def test_accepted_labels_are_read_exactly(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    for path, labels, accepted in written(tmp_path):
        (problem,) = find_problems([(str(image), str(path))], range(256))
        assert (problem is None) == accepted, (path.name, problem)
        if accepted:
            np.testing.assert_array_equal(read_as_mmseg(path), labels)
        else:
            assert problem is not None and problem.kind.startswith("label ") and problem.file == str(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_named(tmp_path: Path, bits: int) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "image.png")
    (tmp_path / "label.png").write_bytes(gray_png(LABELS, bits))
    (problem,) = find_problems([(str(tmp_path / "image.png"), str(tmp_path / "label.png"))], range(256))
    assert str(problem).endswith("label.png: label that is not 8-bit gray (2 or 4 bits per pixel)")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_an_image_is_the_one_in_training(tmp_path: Path, kind: str, orientation: int) -> None:
    """OpenCV applies the EXIF orientation, and so does Pillow for TIFF; a label has to fit the result."""
    path = tmp_path / "image"
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path, kind, exif=exif)
    except (KeyError, OSError):
        pytest.skip(f"Pillow was built without {kind}")
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    fits = []
    for name, shape in (("stored", (HEIGHT, WIDTH)), ("turned", (WIDTH, HEIGHT))):
        label = tmp_path / f"{name}.png"
        Image.fromarray(np.zeros(shape, np.uint8)).save(label)
        (problem,) = find_problems([(str(path), str(label))], range(3))
        if problem is None:
            fits.append(shape)
    assert fits == ([] if pixels is None else [pixels.shape[:2]])


@pytest.mark.parametrize("kind", ["TGA", "ICO", "PCX", "QOI", "SGI"])
def test_images_that_opencv_cannot_read_are_refused(tmp_path: Path, kind: str) -> None:
    path, label = tmp_path / "image.png", tmp_path / "label.png"
    Image.new("RGB", (32, 32)).save(path, kind)
    Image.new("L", (32, 32)).save(label)
    (problem,) = find_problems([(str(path), str(label))], range(3))
    readable = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None
    assert (problem is None) == readable


def test_a_tiff_label_is_turned_like_in_training(tmp_path: Path) -> None:
    path, label = tmp_path / "image.png", tmp_path / "label.tif"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    Image.fromarray(LABELS.T.copy()).save(label, tiffinfo={274: 5})
    assert find_problems([(str(path), str(label))], range(3)) == [None]
    np.testing.assert_array_equal(read_as_mmseg(label), LABELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
@pytest.mark.parametrize("is_gray", [False, True])
def test_images_are_turned_upright_once(tmp_path: Path, kind: str, orientation: int, is_gray: bool) -> None:
    """Pillow turns TIFF files itself; turning them again would undo it."""
    pixels = RNG.integers(0, 256, (HEIGHT, WIDTH, 3)[: 3 - is_gray], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "image", kind, exif=exif)
    bgr = cv2.imdecode(np.fromfile(tmp_path / "image", np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    np.testing.assert_array_equal(read_image(tmp_path / "image", upright=True), bgr[..., ::-1])


def test_files_outside_their_folders(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    pairs = []
    for name in ("a", "../b", "../labels/c"):
        pairs.append((f"{images}/{name}.jpg", f"{labels}/{name}.png"))
        Image.new("RGB", (WIDTH, HEIGHT)).save(pairs[-1][0])
        Image.fromarray(LABELS).save(pairs[-1][1])
    assert find_problems(pairs, range(3)) == [None] * 3
    inside, *outside = find_problems(pairs, range(3), folders=(str(images), str(labels)))
    assert inside is None
    assert all(problem is not None and "--allow-outside" in problem.kind for problem in outside)
