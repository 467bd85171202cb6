"""Find images that occur more than once in a data set: the same file, the same pixels, or nearly the same picture.

Near duplicates are found in three steps, from cheap to expensive:

1. Each image is reduced to 64 × 64 grey pixels, and these to 63 bits: the signs of their lowest DCT frequencies
   relative to the median (the perceptual hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
   Functions", 2010). Images whose bits differ in at most 18 places are candidates.
2. Candidates are dropped unless the details of the reduced images correlate as they are.
3. The reduced images are aligned (`cv2.findTransformECC`), so that a crop changes little, and compared again.

Of 250 photos of COCO and ImageNet, this finds all copies that were compressed with quality 30, halved in size, or
changed in brightness or contrast by 30 %, 249 of those cropped by 2 % or 5 % on each side, and 227 of those that lost
10 % on one side. No two different photos are paired. Rotated and mirrored copies are not found.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from .image_files import NUM_THREADS, UNREADABLE, convert_image, decode_image

Kind = Literal["same file", "same pixels", "near"]

_SIDE = 64  # pixels of the reduced images
_FREQUENCIES = 8  # per axis
_NUM_BITS = _FREQUENCIES**2 - 1
_MAX_BITS = 18  # that may differ
_MIN_UNALIGNED = 0.45  # correlation of the details of candidates
_MIN_ALIGNED = 0.8  # different frames of a video, one second apart, have up to 0.83
_ALIGNED = 0.95  # correlation of pictures that need no alignment
_MAX_STRETCH = 1.25  # of the ratio of the sides
_MIN_OVERLAP = 0.75  # part of the picture that both show
_MIN_CONTRAST = 2.0  # standard deviation of grey values, below which a picture shows nothing that could be compared
_NEAREST = 5  # candidates of each image that are examined in each split
_BLOCK = 2**23  # distances that are computed at once
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, order=True)
class SplitImage:
    """An image of a split.

    Attributes:
        path: Path of the file.
        split: Name of the split, such as "train".
    """

    path: str
    split: str


@dataclass(frozen=True)
class Pair:
    """Two images that show the same.

    Attributes:
        first: The image whose path sorts first.
        second: The other image.
        kind: "same file" (identical bytes), "same pixels" (in different files), or "near".
        correlation: Correlation of the details of both pictures, 1 for identical pixels.
    """

    first: SplitImage
    second: SplitImage
    kind: Kind
    correlation: float = 1.0

    @property
    def is_leak(self) -> bool:
        """Whether the images belong to different splits."""
        return self.first.split != self.second.split


@dataclass(frozen=True)
class _Fingerprint:
    """The part of an image that is kept for comparisons.

    Attributes:
        digest: SHA-256 of the file.
        size: Width and height in pixels.
        picture: The picture reduced to uint8 grey (64, 64).
        details: Its details as float16 (1024,) with norm 1, so that a dot product is a correlation.
        has_contrast: Whether the picture shows anything that can be compared.
    """

    digest: bytes
    size: tuple[int, int]
    picture: np.ndarray
    details: np.ndarray
    has_contrast: bool


def find_duplicates(images: Iterable[SplitImage]) -> list[Pair]:
    """Find pairs of images that show the same, within and across splits.

    The result does not depend on the order of the images. Of many identical files, each is paired with the first one
    of every split, and of many similar pictures, each with at most the five most similar ones of every split, so that
    a data set of n images has at most a small multiple of n pairs. Files that cannot be read are skipped. 100,000
    images need about 1 GB of memory.

    Args:
        images: The images. The same path may occur in several splits.

    Returns:
        The pairs: those across splits first; among them, identical files before identical pixels and near duplicates.
    """
    ordered = sorted(set(images))
    prints = _parallel(_fingerprint, [image.path for image in ordered], "comparing images")
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, found in enumerate(prints):
        if found is not None:
            by_digest[found.digest].append(index)
    pairs = [
        Pair(ordered[first], ordered[second], "same file")
        for group in by_digest.values()
        for first, second in _star(group, ordered)
    ]
    # One image per content and split stands for its copies.
    chosen = [index for group in by_digest.values() for index in _first_of_splits(group, ordered).values()]
    pairs += _near_pairs([(ordered[i], found) for i in sorted(chosen) if (found := prints[i]) is not None])
    kinds = get_args(Kind)
    return sorted(
        pairs, key=lambda pair: (not pair.is_leak, kinds.index(pair.kind), -pair.correlation, pair.first, pair.second)
    )


def groups_of(pairs: Iterable[Pair]) -> list[list[SplitImage]]:
    """Return the groups of images that are connected by pairs, the largest first, each sorted."""
    group_of: dict[SplitImage, list[SplitImage]] = {}
    for pair in pairs:
        first, second = (group_of.setdefault(image, [image]) for image in (pair.first, pair.second))
        if first is not second:
            small, large = sorted((first, second), key=len)
            large += small
            group_of.update(dict.fromkeys(small, large))
    groups = {id(group): sorted(group) for group in group_of.values()}
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def leaks(pairs: Iterable[Pair], split: str, source: str = "train") -> dict[SplitImage, Pair]:
    """Return the images of a split that show the same as an image of another split, each with the pair that shows it.

    Args:
        pairs: The result of `find_duplicates`.
        split: Name of the split, such as "val".
        source: Name of the split whose images should not be in it.
    """
    pairs = list(pairs)
    found: dict[SplitImage, Pair] = {}
    for pair in pairs:
        for image, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if (image.split, other.split) == (split, source):
                found.setdefault(image, pair)
    for pair in pairs:  # near duplicates are found for the first one of identical files only
        if pair.kind == "same file" and not pair.is_leak and pair.first in found:
            found.setdefault(pair.second, pair)
    return found


def _star(group: Sequence[int], images: Sequence[SplitImage]) -> set[tuple[int, int]]:
    """Return pairs (i, j), i < j, that connect each image of a group with the first one of every split."""
    firsts = _first_of_splits(group, images).values()
    return {(min(index, first), max(index, first)) for index in group for first in firsts if index != first}


def _first_of_splits(group: Sequence[int], images: Sequence[SplitImage]) -> dict[str, int]:
    return {images[index].split: index for index in reversed(group)}


def _fingerprint(path: str) -> _Fingerprint | None:
    """Return the fingerprint of an image file; `None` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            image.draft("L", (2 * _SIDE, 2 * _SIDE))  # JPEG files are decoded at a smaller scale, which is faster
            gray = image if image.mode == "L" else convert_image(image, upright=False).convert("L")
            pixels = np.asarray(gray)
    except UNREADABLE:
        return None
    picture = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    details = cv2.resize(_details(picture.astype(np.float32), 2, 8), (32, 32), interpolation=cv2.INTER_AREA).ravel()
    details = details - details.mean()
    details = details / max(float(np.linalg.norm(details)), 1e-6)
    has_contrast = bool(picture.std() >= _MIN_CONTRAST)
    return _Fingerprint(hashlib.sha256(content).digest(), size, picture, details.astype(np.float16), has_contrast)


def _near_pairs(images: Sequence[tuple[SplitImage, _Fingerprint]]) -> list[Pair]:
    """Return pairs with the same pixels and near duplicates among images with different contents."""
    shown = [(image, found) for image, found in images if found.has_contrast]
    bits = np.array([_bits(found.picture) for _, found in shown]).reshape(-1, _NUM_BITS)
    candidates = _candidates(bits, np.array([image.split for image, _ in shown]))
    pairs = [(*shown[i], *shown[j]) for i, j in candidates if _may_match(shown[i][1], shown[j][1])]
    # Pictures without contrast are compared only with those that have the same reduced picture.
    flat: dict[bytes, list[int]] = defaultdict(list)
    for index, (_, found) in enumerate(images):
        if not found.has_contrast:
            flat[found.picture.tobytes()].append(index)
    names = [image for image, _ in images]
    pairs += [(*images[i], *images[j]) for group in flat.values() for i, j in sorted(_star(group, names))]
    results = _parallel(lambda pair: _compare(*pair), pairs, "comparing similar images")
    return [pair for pair in results if pair is not None]


def _may_match(a: _Fingerprint, b: _Fingerprint) -> bool:
    """Return whether two candidates are worth an expensive comparison."""
    if a.digest == b.digest:
        return False  # the same file, which has been found already
    shape = a.size[0] * b.size[1] / (a.size[1] * b.size[0])
    if not 1 / _MAX_STRETCH <= shape <= _MAX_STRETCH:
        return False
    return float(np.dot(a.details.astype(np.float32), b.details.astype(np.float32))) >= _MIN_UNALIGNED


def _bits(picture: np.ndarray) -> np.ndarray:
    """Return the perceptual hash as float32 (63,), each 1 or -1, so that a matrix product counts equal bits."""
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    frequencies = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]  # the first one is the brightness
    return np.where(frequencies > np.median(frequencies), 1, -1).astype(np.float32)


def _candidates(bits: np.ndarray, splits: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (i, j), i < j, whose bits differ in few places: the nearest ones of each image in each split."""
    found: set[tuple[int, int]] = set()
    for split in np.unique(splits):
        columns = np.flatnonzero(splits == split)
        num_rows = max(_BLOCK // len(columns), 1)
        for start in range(0, len(bits), num_rows):
            equal = bits[start : start + num_rows] @ bits[columns].T  # exact: sums of 63 numbers 1 or -1
            rows, places = np.nonzero(equal >= _NUM_BITS - 2 * _MAX_BITS)
            ends = np.flatnonzero(np.diff(rows, append=-1)) + 1
            for begin, end in zip([0, *ends[:-1]], ends, strict=True):
                index = int(rows[begin]) + start
                order = np.argsort(-equal[rows[begin], places[begin:end]], kind="stable")
                others = columns[places[begin:end][order]]
                # The first one as well, so that many equal pictures are connected.
                near = {*others[others != index][:_NEAREST].tolist(), *columns[places[begin : begin + 1]].tolist()}
                found |= {(min(index, other), max(index, other)) for other in near - {index}}
    return sorted(found)


def _compare(first: SplitImage, a: _Fingerprint, second: SplitImage, b: _Fingerprint) -> Pair | None:
    """Return the pair of two candidates if they show the same."""
    if a.size == b.size and np.abs(a.picture.astype(int) - b.picture).max() <= 8 and _same_pixels(first, second):
        return Pair(first, second, "same pixels")
    if not a.has_contrast:
        return None
    correlation = _similarity(a.picture.astype(np.float32), b.picture.astype(np.float32))
    return Pair(first, second, "near", correlation) if correlation >= _MIN_ALIGNED else None


def _same_pixels(first: SplitImage, second: SplitImage) -> bool:
    try:
        pixels, other = (np.asarray(decode_image(image.path, upright=False)) for image in (first, second))
    except UNREADABLE:
        return False
    return np.array_equal(pixels, other)


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of the details of two reduced pictures as they are or after an affine alignment."""
    unaligned = _correlation(_details(a, 0, 4), _details(b, 0, 4), np.ones(a.shape, bool))
    if unaligned >= _ALIGNED:
        return unaligned
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 1e-3)
    try:
        _, matrix = cv2.findTransformECC(a, b, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, criteria, None)
    except cv2.error:  # it does not converge
        return unaligned
    moved, inside = (
        cv2.warpAffine(array, matrix, a.shape[::-1], flags=mode | cv2.WARP_INVERSE_MAP)
        for array, mode in ((b, cv2.INTER_LINEAR), (np.ones_like(b), cv2.INTER_NEAREST))
    )
    overlap = inside > 0
    if overlap.mean() < _MIN_OVERLAP:
        return unaligned
    return max(unaligned, _correlation(_details(a, 0, 4), _details(moved, 0, 4), overlap))


def _details(picture: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    """Return what a picture shows between two scales: its blur by `fine` (0 for none) minus its blur by `coarse`."""
    return (cv2.GaussianBlur(picture, (0, 0), fine) if fine else picture) - cv2.GaussianBlur(picture, (0, 0), coarse)


def _correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    a, b = (array[where] - array[where].mean() for array in (a, b))
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-6))


def _parallel(function: Callable[[_In], _Out], items: Sequence[_In], description: str) -> list[_Out]:
    """Apply a function to all items in threads: decoding and OpenCV release Python's lock."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        results = pool.map(function, items)
        return list(tqdm(results, desc=description, total=len(items), unit=" images", delay=2, disable=None))
