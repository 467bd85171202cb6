"""Check and decode the segmentations of COCO annotations: polygons and run-length encodings."""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np

from ..errors import TwinsError, requires_extra

_MARGIN = 20  # longer sides of the image
_MAX_LENGTH = 1000  # longer sides of the image
_MAX_SHIFT = 30  # bits; pycocotools stores run lengths in 32


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a COCO segmentation to a mask.

    Args:
        segmentation: Polygons (a list of flat lists x, y, x, y, ... in pixels), whose union is the mask, or a
            run-length encoding {"counts": ..., "size": [height, width]}. Counts are a list or compressed (str, bytes).
            An empty segmentation, which means that an annotation has only a box, is an error.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The mask as uint8 (height, width), 0 outside and 1 inside.

    Raises:
        TwinsError: If the segmentation is malformed or belongs to an image of a different size.
    """
    problem = segmentation_problem(segmentation, height, width)
    if problem is not None:
        raise TwinsError(f"segmentation {problem}; `load_coco` finds the annotation that it belongs to")
    if isinstance(segmentation, list):
        with requires_extra("detection"):
            from pycocotools import mask as mask_utils
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    lengths = run_lengths(segmentation["counts"])
    # Runs of zeros and ones alternate down the columns. `mask_utils.decode` does the same, but as of pycocotools 2.0.11
    # it raises a deprecation warning of NumPy 2.
    values = (np.arange(len(lengths)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height).T)


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Describe what is wrong with a segmentation of an image of this size; return `None` if it is valid."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or not are_finite_numbers(polygon):
                return f"has the polygon {reprlib.repr(polygon)}, which is not a list of finite numbers"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it needs x and y of at least 3 points"
            problem = _extent_problem(polygon, height, width)
            if problem is not None:
                return f"has the polygon {reprlib.repr(polygon)}, which {problem}"
        return None
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        return f"is {reprlib.repr(segmentation)}, neither polygons nor a run-length encoding with counts and size"
    size = segmentation["size"]
    if size != [height, width] or any(type(side) is not int for side in size):
        return f"has the size {reprlib.repr(size)}, but its image has [{height}, {width}]"
    try:
        num_pixels = sum(run_lengths(segmentation["counts"]))
    except ValueError:
        return f"has counts that are not run lengths: {reprlib.repr(segmentation['counts'])}"
    if num_pixels != height * width:
        return f"has counts that add up to {num_pixels}, but its image has {height * width} pixels"
    return None


def run_lengths(counts: Any) -> list[int]:
    """Return the run lengths of a run-length encoding, given compressed (str, bytes) or as a list.

    Raises:
        ValueError: If they are malformed. pycocotools does not check them, and accesses memory out of bounds.
    """
    lengths = _decompress(counts) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(lengths, list) or any(type(length) is not int or length < 0 for length in lengths):
        raise ValueError("run lengths must be whole numbers of at least 0")
    return lengths


def are_finite_numbers(values: list[Any]) -> bool:
    """Return whether all values are int or float, and their sum is finite, so that none of them is NaN or infinite."""
    try:
        # Loops in C are faster than testing each value.
        return {*map(type, values)} <= {int, float} and math.isfinite(sum(values))
    except OverflowError:  # an int that is too large for a float
        return False


def margin_of(height: int, width: int) -> int:
    """Return how many pixels boxes and polygons may extend beyond an image of this size.

    Annotators and tilings leave shapes that extend beyond the image, which is harmless. The limit is so large that only
    mistakes exceed it; pycocotools would need gigabytes for them, or crash.
    """
    return _MARGIN * max(height, width)


def _extent_problem(polygon: list[float], height: int, width: int) -> str | None:
    """Describe what makes a polygon too large to be drawn; return `None` if it is valid."""
    margin, longest = margin_of(height, width), _MAX_LENGTH * max(height, width)
    low, high = min(polygon), max(polygon)
    # No edge is longer than the extent, so that this is enough to know for ordinary polygons.
    if low >= 0 and high <= min(height, width) + margin and len(polygon) * (high - low) <= longest:
        return None
    if low < -margin or max(polygon[::2]) > width + margin or max(polygon[1::2]) > height + margin:
        return f"extends more than {margin} pixels beyond its image of {width}x{height} pixels"
    points = np.array(polygon).reshape(-1, 2)
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > longest:
        return f"has edges of {length:.0f} pixels in all; at most {longest} are possible"
    return None


def _decompress(counts: str | bytes) -> list[int]:
    """Return the numbers in a compressed run-length encoding.

    Each number is written in groups of five bits, the lowest first, as characters that start at "0". The sixth bit of
    a character is set if another group follows, and the highest bit of the last group is the sign. From the fourth
    number on, the difference from the number two places before is stored. (`rleFrString` in pycocotools'
    maskApi.c is the specification.)
    """
    numbers: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8") if isinstance(counts, str) else counts:
        group = code - ord("0")
        if not 0 <= group < 64:
            raise ValueError(f"{chr(code)!r} is not a character of a compressed run-length encoding")
        if shift > _MAX_SHIFT:  # without a limit, the time would be quadratic in the length of the number
            raise ValueError("a run length has too many digits")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a compressed run-length encoding ends within a number")
    return numbers
