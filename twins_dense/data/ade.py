"""Check data in ADE20K's format: a folder of images, and for each a PNG of its size whose values are classes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .coco import NUM_THREADS, UNREADABLE, check_image

# EXIF orientations that swap height and width; mmcv turns images upright when it reads them.
_LYING = (5, 6, 7, 8)
_SHOWN = 5


@dataclass(frozen=True, order=True)
class Problem:
    """What keeps a pair of an image and its label from being used.

    Attributes:
        kind: equal for problems of one sort.
        file: the image or the label, whichever is wrong.
        detail: what is wrong with this one, where `kind` doesn't say all of it.
    """

    kind: str
    file: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}{self.detail and f' ({self.detail})'}"


def find_problems(pairs: Sequence[tuple[str, str]], values: Collection[int]) -> list[Problem | None]:
    """Check images and their labels.

    Args:
        pairs: paths of an image and its label.
        values: those that may stand in a label: the classes, and what is ignored.

    Returns:
        For each pair its first problem, or `None`.
    """
    allowed = np.zeros(256, dtype=bool)
    allowed[list(values)] = True
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(lambda pair: _problem(Path(pair[0]), Path(pair[1]), allowed), pairs)
        # The bar is for large data sets only: it shows after two seconds, and only on a terminal.
        return list(tqdm(found, desc="checking labels", total=len(pairs), unit=" images", delay=2, disable=None))


def summarise(problems: Sequence[Problem]) -> Iterator[str]:
    """For each kind of problem a line with its number and its first five files."""
    for kind, group in groupby(sorted(problems), key=lambda problem: problem.kind):
        files = [f"{problem.file}{problem.detail and f' ({problem.detail})'}" for problem in group]
        more = ", …" if len(files) > _SHOWN else ""
        yield f"{len(files)} × {kind}: {', '.join(files[:_SHOWN])}{more}"


def _problem(image: Path, label: Path, allowed: np.ndarray) -> Problem | None:
    if not label.is_file():
        return Problem("image without its label", str(image), f"no {label}")
    try:
        check_image(image)
        with Image.open(image) as opened:
            size = opened.size[::-1] if opened.getexif().get(0x0112) in _LYING else opened.size
    except UNREADABLE as error:
        return Problem("image that can't be read", str(image), " ".join(str(error).split()))
    try:
        with Image.open(label) as opened:
            if opened.mode == "P":
                return Problem("label with a palette, save plain 8-bit gray values", str(label))
            if opened.mode not in ("L", "1"):
                return Problem("label that is not 8-bit gray", str(label), f"mode {opened.mode}")
            label_size, found = opened.size, np.bincount(np.asarray(opened).ravel(), minlength=256) > 0
    except UNREADABLE as error:
        return Problem("label that can't be read", str(label), " ".join(str(error).split()))
    if label_size != size:
        sizes = [f"{width}x{height}" for width, height in (label_size, size)]
        return Problem("label of another size than its image", str(label), f"{sizes[0]} for {sizes[1]}")
    outside = np.flatnonzero(found & ~allowed)
    if len(outside):
        return Problem("label with values outside the classes", str(label), ", ".join(map(str, outside[:_SHOWN])))
    return None
