"""Pictures inside the page: thumbnails and maps as data URIs, and the outlines of masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ...data.coco_masks import decode_segmentation, segmentation_problem
from ...data.image_files import UNREADABLE, convert_image, open_image
from ...errors import TwinsError, one_line

LONG_SIDE = 512  # pixels of a thumbnail
_QUALITY = 78  # of JPEG files, 1..95


def thumbnail(path: str | Path, *, upright: bool = False, long_side: int = LONG_SIDE) -> tuple[str, int, int]:
    """Return an image as the data URI of a JPEG file, and its width and height in pixels before it is reduced.

    Args:
        path: Path of the image file.
        upright: Whether to apply the EXIF orientation, as for `read_image`.
        long_side: Largest height and width of the thumbnail in pixels; smaller images keep their size.

    Raises:
        TwinsError: If the file is missing, unreadable or truncated.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
            # The decoder of JPEG files can reduce large images itself, which saves most of the time.
            enough = long_side * 3 // 2
            is_reduced = image.draft(None, (enough, enough)) is not None
            decoded = image.size
            picture = convert_image(image, upright=upright)
    except UNREADABLE as error:
        raise TwinsError(f"{path}: cannot be read as an image ({one_line(error)}); replace the file") from error
    if not is_reduced:
        width, height = picture.size
    elif picture.size != decoded:  # turned by 90 degrees
        width, height = height, width
    picture.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    return _data_uri("image/jpeg", file), width, height


def palette_picture(indices: np.ndarray, palette: Sequence[Sequence[int]], *, long_side: int = LONG_SIDE) -> str:
    """Return a map as the data URI of a PNG file, reduced without interpolation if it is larger than a thumbnail.

    Args:
        indices: uint8 (H, W), indices into `palette`; other values become transparent.
        palette: One (R, G, B) in 0..255 per index.
        long_side: Largest height and width of the result in pixels.
    """
    step = max(indices.shape) / long_side
    if step > 1:
        rows, columns = (((np.arange(round(size / step)) + 0.5) * step).astype(int) for size in indices.shape)
        indices = indices[rows.clip(max=indices.shape[0] - 1)][:, columns.clip(max=indices.shape[1] - 1)]
    picture = Image.fromarray(np.ascontiguousarray(indices), "L")
    unknown = 256 - len(palette)
    picture.putpalette(np.asarray(palette, np.uint8).tobytes() + bytes(3 * unknown))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=b"\xff" * len(palette) + b"\0" * unknown)
    return _data_uri("image/png", file)


def contours_of(segmentation: Any, height: int, width: int) -> list[np.ndarray]:
    """Return the outlines of a COCO segmentation, simplified to about a thousandth of the image's size.

    Args:
        segmentation: Polygons or a run-length encoding, as for `decode_segmentation`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Outlines, each float32 (N, 2) x and y in pixels, where 0 is the border of the image; holes run in the opposite
        direction. Without a polygon or a pixel, the list is empty.

    Raises:
        TwinsError: If the segmentation is malformed or belongs to an image of a different size.
    """
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        problem = segmentation_problem(segmentation, height, width)
        if problem is not None:
            raise TwinsError(f"segmentation {problem}")
        outlines = [np.array(polygon, np.float32).reshape(-1, 1, 2) for polygon in segmentation]
    else:
        mask = decode_segmentation(segmentation, height, width)
        left, top, w, h = cv2.boundingRect(mask)
        if not w:
            return []
        part = mask[top : top + h, left : left + w]
        found, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(left, top))
        outlines = [outline.astype(np.float32) + 0.5 for outline in found]  # from indices to the centres of pixels
    tolerance = max(height, width) / 1000
    return [cv2.approxPolyDP(outline, tolerance, True).reshape(-1, 2) for outline in outlines]


def path_data(contours: Sequence[np.ndarray]) -> str:
    """Return closed outlines, each (N, 2) x and y, as the attribute `d` of an SVG path, with one decimal."""
    parts = []
    start = np.zeros((1, 2), int)
    for contour in contours:
        tenths = np.round(np.asarray(contour, np.float64) * 10).astype(int)
        # Coordinates are relative to the point before, and the first ones to the start of the outline before.
        steps = np.diff(tenths, axis=0, prepend=start)
        start = tenths[:1]
        numbers = " ".join(f"{value / 10:g}" for value in steps.ravel().tolist())
        parts.append(f"m{numbers}z".replace(" -", "-"))  # a minus sign separates numbers, too
    return "".join(parts)


def _data_uri(media_type: str, file: io.BytesIO) -> str:
    return f"data:{media_type};base64,{base64.b64encode(file.getvalue()).decode()}"
