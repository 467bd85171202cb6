"""Check data in ADE20K format: images, each with a PNG of the same size whose values are classes."""

from __future__ import annotations

import colorsys
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import TwinsError, one_line, requires_extra
from .image_files import NUM_THREADS, UNREADABLE, check_image, exif_orientation, is_inside, open_image

# Formats in which OpenCV, which reads the images in training, always finds the same size as Pillow if the image is
# upright.
_COMMON = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")  # of labels
_LOSSY = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF files
_SHOWN = 5
# Folder in the archive of the challenge, number of images per split, and number of classes.
_ADE20K = "ADEChallengeData2016"
_ADE20K_IMAGES = {"training": 20210, "validation": 2000}
_ADE20K_CLASSES = 150


@dataclass(frozen=True, order=True)
class Problem:
    """Reason why an image and its label cannot be used.

    Attributes:
        kind: Kind of the problem; `summarise` groups by it.
        file: Path of the image or the label, whichever is wrong.
        detail: Details about this file, if any.
    """

    kind: str
    file: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}{self.detail and f' ({self.detail})'}"


def find_problems(
    pairs: Sequence[tuple[str, str]], values: Collection[int], *, folders: tuple[str, str] | None = None
) -> list[Problem | None]:
    """Check images and their labels.

    Args:
        pairs: Paths of each image and its label.
        values: Values allowed in labels: the classes and the ignored value.
        folders: Folders in which the images and the labels must be; `None` allows any.

    Returns:
        The first problem of each pair, or `None` if it has none.
    """
    allowed = np.zeros(256, dtype=bool)
    allowed[list(values)] = True

    def check(pair: tuple[str, str]) -> Problem | None:
        for path, folder in zip(pair, folders or (), strict=False):
            if not is_inside(Path(path), Path(folder)):
                return Problem("file outside its folder (add --allow-outside if it may be read)", path)
        return _problem(Path(pair[0]), Path(pair[1]), allowed)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(check, pairs)
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        return list(tqdm(found, desc="checking labels", total=len(pairs), unit=" images", delay=2, disable=None))


def summarise(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield one line per kind of problem, with the number of files and the first five of them."""
    for kind, group in groupby(sorted(problems), key=lambda problem: problem.kind):
        files = [f"{problem.file}{problem.detail and f' ({problem.detail})'}" for problem in group]
        more = ", …" if len(files) > _SHOWN else ""
        yield f"{len(files)} × {kind}: {', '.join(files[:_SHOWN])}{more}"


def class_palette(num_classes: int) -> list[list[int]]:
    """Return one RGB colour per class. Hues follow the golden ratio, so that neighbouring classes differ clearly."""
    hues = (0.618034 * i % 1 for i in range(num_classes))
    colors = (colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (i % 2), 1 - 0.25 * (i % 3)) for i, hue in enumerate(hues))
    return [[round(255 * value) for value in color] for color in colors]


def prepare_ade20k(archive: str | Path, out_dir: str | Path, *, num_images: Mapping[str, int] = _ADE20K_IMAGES) -> Path:
    """Unpack the archive of the ADE20K challenge, unless it has been unpacked before, and check its images and labels.

    Args:
        archive: Path of ADEChallengeData2016.zip.
        out_dir: Folder in which ADEChallengeData2016 is created. An interrupted call leaves no partial folder.
        num_images: Number of images per split.

    Returns:
        Path of the folder ADEChallengeData2016, which is the `data_root` of the configs.

    Raises:
        TwinsError: If the archive is broken or not that of the challenge, or if images or labels are missing or bad.
    """
    folder = Path(out_dir) / _ADE20K
    if not folder.exists():
        _unpack(Path(archive), folder)
    for split, expected in num_images.items():
        images = sorted((folder / "images" / split).glob("*.jpg"))
        if len(images) != expected:
            raise TwinsError(
                f"{folder / 'images' / split} holds {len(images)} images instead of {expected}: "
                "remove the folder and unpack the archive again"
            )
        pairs = [(str(image), str(folder / "annotations" / split / f"{image.stem}.png")) for image in images]
        problems = [problem for problem in find_problems(pairs, range(_ADE20K_CLASSES + 1)) if problem is not None]
        if problems:
            raise TwinsError(f"{folder}: {'; '.join(summarise(problems))}. Download and unpack the archive again")
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if not archive.is_file():
        raise TwinsError(f"archive {str(archive)!r}: no such file; datasets/README.md says where to download it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.startswith(f"{_ADE20K}/")]
            if not members:
                raise TwinsError(f"archive {str(archive)!r} has no folder {_ADE20K}: give the archive of the challenge")
            for name in tqdm(members, desc="unpacking", unit=" files", disable=None):
                opened.extract(name, temporary)
            (Path(temporary) / _ADE20K).replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise TwinsError(f"archive {str(archive)!r} is broken ({one_line(error)}): download it again") from None


def _problem(image: Path, label: Path, allowed: np.ndarray) -> Problem | None:
    if not os.path.isfile(label):
        return Problem("image without its label", str(image), f"no {label}")
    try:
        check_image(image)
        size = _size_in_training(image)
    except UNREADABLE as error:
        return Problem("image that cannot be read", str(image), one_line(error))
    try:
        with open_image(label) as opened:
            if opened.mode == "P":
                return Problem("label with a palette (save plain 8-bit gray values)", str(label))
            if opened.mode not in ("L", "1") or _is_stretched(opened):
                return Problem("label that is not 8-bit gray", str(label), _depth(opened))
            if opened.format not in _LOSSLESS or opened.info.get("compression") in _LOSSY:
                kind = "label in a format that changes values (save it as PNG)"
                return Problem(kind, str(label), opened.format or "")
            pixels = np.asarray(opened)  # as `LoadAnnotations` of mmseg reads it; it turns TIFF files upright
            label_size, found = pixels.shape[::-1], np.bincount(pixels.ravel(), minlength=256) > 0
    except UNREADABLE as error:
        return Problem("label that cannot be read", str(label), one_line(error))
    if label_size != size:
        sizes = [f"{width}x{height}" for width, height in (label_size, size)]
        return Problem("label whose size differs from that of its image", str(label), f"{sizes[0]} for {sizes[1]}")
    outside = np.flatnonzero(found & ~allowed)
    if len(outside):
        return Problem("label with values outside the classes", str(label), ", ".join(map(str, outside[:_SHOWN])))
    return None


def _size_in_training(image: Path) -> tuple[int, int]:
    """Return the width and height of an image as mmcv reads it: by OpenCV, which applies most EXIF orientations."""
    with open_image(image) as opened:
        if opened.format in _COMMON and exif_orientation(opened) == 1:
            return opened.size
        kind = opened.format
    with requires_extra("segmentation"):
        import cv2
    try:
        pixels = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"OpenCV cannot decode this {kind} file; save it as PNG or JPEG")
    return pixels.shape[1], pixels.shape[0]


def _is_stretched(image: Image.Image) -> bool:
    """Return whether Pillow stretches 2 or 4 bits per pixel to 0..255, so that classes 0, 1, 2 become 0, 17, 34."""
    return any(re.search(";[24]", str(tile[3])) for tile in getattr(image, "tile", ()))


def _depth(image: Image.Image) -> str:
    return "2 or 4 bits per pixel" if image.mode == "L" else f"mode {image.mode}"
