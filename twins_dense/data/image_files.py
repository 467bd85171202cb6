"""Read image files: which errors say that one is bad, whether it is whole, its pixels in RGB."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import TwinsError, one_line

# What Pillow raises for a file that it can't read; which one depends on the format and on where the damage is.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# The last bytes of a complete file. A file without them may still be whole (cameras append data), so it is decoded.
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_EXIF_ORIENTATION = 0x0112
# What makes a stored image upright, by its orientation; the others are upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_PIXELS = 2**27  # of a resized image: 400 MB
_TAIL_SIZE = 64  # bytes; the marker is the end of the file, or is followed by a few bytes of padding


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Read an image as uint8 RGB (height, width, 3), contiguous, converted from gray (8, 16 bits), palette, RGBA, CMYK.

    Args:
        path: The image file.
        upright: Apply the EXIF orientation, as viewers do. Boxes and masks in COCO format count pixels as they are
            stored, so data sets are read without it.

    Raises:
        TwinsError: where the file is missing, unreadable or cut.
    """
    try:
        return np.array(decode_image(path, upright=upright))  # a copy: Pillow's own buffer is read-only
    except UNREADABLE as error:
        raise TwinsError(f"{path}: can't be read as an image ({one_line(error)}); replace the file") from error


def decode_image(source: str | Path | BinaryIO, *, upright: bool) -> Image.Image:
    """An image in RGB, as `read_image` reads it; one of UNREADABLE where it can't be read."""
    with Image.open(source) as file:
        # Not ImageOps.exif_transpose: it writes all of the EXIF anew, and fails at entries that nobody asked for.
        turn = _UPRIGHT.get(exif_orientation(file)) if upright else None
        image = file if turn is None else file.transpose(turn)
        if image.mode.startswith("I;16"):  # Pillow's own conversion would cut at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def exif_orientation(image: Image.Image) -> int:
    """How EXIF would turn an image: 2 to 8, or 1 for not at all."""
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    return orientation if orientation in _UPRIGHT else 1


def check_proportions(image: Image.Image, short_side: int) -> None:
    """ValueError, one of UNREADABLE, for an image so long and narrow that resizing it would take gigabytes."""
    if short_side**2 * max(image.size) / min(image.size) > _MAX_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} pixels are too long and narrow for a short side of {short_side}"
        )


def check_image(path: Path) -> tuple[int, int]:
    """The (width, height) of an image that is whole; decoded only where its end leaves doubt.

    Raises:
        One of UNREADABLE, where the file is missing, unreadable or cut.
    """
    with Image.open(path) as image:
        marker = _END_MARKERS.get(image.format or "")
        if marker is None or marker not in _tail(path):
            image.load()
        return image.size


def _tail(path: Path) -> bytes:
    """The last bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_SIZE), os.SEEK_SET)
        return file.read()
