"""Read and check image files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import TwinsError, one_line

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
NUM_THREADS = 8  # checks of many files wait for the disk, not for the processor
# Exceptions that Pillow raises for a bad file. The type depends on the format and the damage.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# Markers at the end of a complete file. A file without one may still be complete, because cameras append data, so it is
# decoded.
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_EXIF_ORIENTATION = 0x0112
# Transformation from a stored image to an upright one, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_PIXELS = 2**27  # of a resized image; it then takes 400 MB
MAX_SIDE = 8192  # pixels of the short side that images may be resized to
_TAIL_SIZE = 64  # bytes, because a few bytes of padding may follow the end marker


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Read an image as RGB. Gray (8 and 16 bits), palette, RGBA and CMYK images are converted.

    Args:
        path: Path of the image file.
        upright: Whether to apply the EXIF orientation, as image viewers do. Boxes and masks in COCO format refer to
            pixels as they are stored, so COCO data sets are read without it.

    Returns:
        Contiguous and writable uint8 array (height, width, 3).

    Raises:
        TwinsError: If the file is missing, unreadable or truncated.
    """
    try:
        return np.array(decode_image(path, upright=upright))  # a copy: Pillow's own buffer is read-only
    except UNREADABLE as error:
        raise TwinsError(f"{path}: cannot be read as an image ({one_line(error)}); replace the file") from error


def decode_image(source: str | Path | BinaryIO, *, upright: bool) -> Image.Image:
    """Return an image in RGB like `read_image`, but raise one of `UNREADABLE` if it cannot be read."""
    if isinstance(source, (str, Path)):
        with open_image(source) as image:
            return convert_image(image, upright=upright)
    with Image.open(source) as image:
        return convert_image(image, upright=upright)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, but not by its name.

    Pillow 13.0 maps files that are opened by name into memory, and then returns uncompressed TIFF files with an EXIF
    orientation of 5 to 8 as scrambled pixels.
    """
    with Path(path).open("rb") as file, Image.open(file) as image:
        yield image


def convert_image(image: Image.Image, *, upright: bool) -> Image.Image:
    """Return an open image in RGB like `decode_image`."""
    image.load()  # which turns TIFF files upright and removes their orientation
    # ImageOps.exif_transpose would write all EXIF data again, and fail on invalid entries that do not matter here.
    turn = _UPRIGHT.get(exif_orientation(image)) if upright else None
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 2 to 8, or 1 if it is upright or has no valid orientation."""
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    return orientation if orientation in _UPRIGHT else 1


def check_proportions(image: Image.Image, short_side: int) -> None:
    """Raise ValueError, one of `UNREADABLE`, for an image so long and narrow that resizing it would take gigabytes."""
    if short_side**2 * max(image.size) / min(image.size) > _MAX_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} pixels are too long and narrow for a short side of {short_side}"
        )


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path stays in a folder when its `..` are resolved. Symbolic links in it may lead elsewhere."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def check_image(path: Path) -> tuple[int, int]:
    """Check that an image file is complete, and return its (width, height) in pixels.

    The image is decoded only if the end of the file does not show that it is complete. One of `UNREADABLE` is raised if
    the file is missing, unreadable or truncated.
    """
    with open_image(path) as image:
        marker = _END_MARKERS.get(image.format or "")
        if marker is None or marker not in _tail(path):
            image.load()
        return image.size


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_SIZE), os.SEEK_SET)
        return file.read()
