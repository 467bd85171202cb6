"""Check data in ADE20K's format: a folder of images, and for each a PNG of its size whose values are classes."""

from __future__ import annotations

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

from ..errors import TwinsError, one_line
from .coco import NUM_THREADS
from .image_files import UNREADABLE, check_image

# EXIF orientations that swap height and width; mmcv turns images upright when it reads them.
_LYING = (5, 6, 7, 8)
_SHOWN = 5
# Of the challenge's archive, and what is in it.
_ADE20K = "ADEChallengeData2016"
_ADE20K_IMAGES = {"training": 20210, "validation": 2000}
_ADE20K_CLASSES = 150


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


def prepare_ade20k(archive: str | Path, out_dir: str | Path, *, num_images: Mapping[str, int] = _ADE20K_IMAGES) -> Path:
    """Unpack the challenge's archive into `out_dir`, unless that is done, and check what is there.

    Args:
        archive: ADEChallengeData2016.zip.
        out_dir: gets the folder ADEChallengeData2016, whole or not at all.
        num_images: of each split.

    Returns:
        The folder, which is the `data_root` of the configs.

    Raises:
        TwinsError: for an archive that is broken or another one, and for missing or wrong images and labels.
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
            raise TwinsError(f"{folder}: {'; '.join(summarise(problems))}. Fetch and unpack the archive again")
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if not archive.is_file():
        raise TwinsError(f"archive {str(archive)!r}: no such file; datasets/README.md says where to get it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.startswith(f"{_ADE20K}/")]
            if not members:
                raise TwinsError(f"archive {str(archive)!r} holds no folder {_ADE20K}: give the challenge's archive")
            for name in tqdm(members, desc="unpacking", unit=" files", disable=None):
                opened.extract(name, temporary)
            (Path(temporary) / _ADE20K).replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise TwinsError(f"archive {str(archive)!r} is broken ({error}): fetch it again") from None


def _problem(image: Path, label: Path, allowed: np.ndarray) -> Problem | None:
    if not label.is_file():
        return Problem("image without its label", str(image), f"no {label}")
    try:
        check_image(image)
        with Image.open(image) as opened:
            size = opened.size[::-1] if opened.getexif().get(0x0112) in _LYING else opened.size
    except UNREADABLE as error:
        return Problem("image that can't be read", str(image), one_line(error))
    try:
        with Image.open(label) as opened:
            if opened.mode == "P":
                return Problem("label with a palette, save plain 8-bit gray values", str(label))
            if opened.mode not in ("L", "1"):
                return Problem("label that is not 8-bit gray", str(label), f"mode {opened.mode}")
            label_size, found = opened.size, np.bincount(np.asarray(opened).ravel(), minlength=256) > 0
    except UNREADABLE as error:
        return Problem("label that can't be read", str(label), one_line(error))
    if label_size != size:
        sizes = [f"{width}x{height}" for width, height in (label_size, size)]
        return Problem("label of another size than its image", str(label), f"{sizes[0]} for {sizes[1]}")
    outside = np.flatnonzero(found & ~allowed)
    if len(outside):
        return Problem("label with values outside the classes", str(label), ", ".join(map(str, outside[:_SHOWN])))
    return None
