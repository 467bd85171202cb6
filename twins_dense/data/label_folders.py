"""Recognise folders of images with one PNG of labels per image."""

from __future__ import annotations

import csv
import json
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ..errors import TwinsError, one_line
from .coco_folder import split_of
from .image_files import IMAGE_SUFFIXES, NUM_THREADS, UNREADABLE, open_image

_Item = TypeVar("_Item")
IGNORED = 255  # value of pixels that belong to no class
_SAMPLE = 50  # images whose label maps are looked for under other names
_LABEL_FOLDERS = ("annotations", "labels", "masks")
_CLASS_FILES = ("classes.json", "classes.txt", "labelmap.txt", "objectInfo150.csv")


@dataclass(frozen=True)
class LabelSplit:
    """Images and labels of one split.

    Attributes:
        image_dir: Folder of the images; absolute.
        label_dir: Folder of the label maps; absolute.
        names: Names of the images that have a label, without the suffix; sorted.
        image_suffix: Suffix of the image files.
        label_suffix: Suffix of the label maps, such as ".png" or "_L.png".
        num_unlabelled: Number of images without a label map.
    """

    image_dir: Path
    label_dir: Path
    names: tuple[str, ...]
    image_suffix: str
    label_suffix: str
    num_unlabelled: int

    def label_paths(self) -> list[Path]:
        """Return the path of each label map, in the order of `names`."""
        return [self.label_dir / f"{name}{self.label_suffix}" for name in self.names]


def find_label_folders(root: Path) -> list[Path]:
    """Return the folders of label maps that are beside `images`."""
    if not (root / "images").is_dir():
        return []
    return [root / name for name in _LABEL_FOLDERS if any((root / name).glob("**/*.png"))]


def read_label_folders(root: Path) -> tuple[str, dict[str, LabelSplit]]:
    """Return the layout and the splits: `images/SPLIT` and `annotations/SPLIT`, or a single split "train".

    Raises:
        TwinsError: If several folders hold label maps, or images and labels do not belong together.
    """
    label_folders = find_label_folders(root)
    if len(label_folders) > 1:
        both = " or ".join(f"{folder.name}/" for folder in label_folders)
        raise TwinsError(f"{root}: which folder contains the labels, {both}? Move the other one away")
    labels, images = label_folders[0], root / "images"
    names = [path.name for path in sorted(images.iterdir()) if path.is_dir()]
    folders = {name: split for name in names if (split := split_of(name))}
    layout = "ADE20K" if labels.name == "annotations" and folders else "images and label maps"
    if not folders:
        return layout, {"train": _pair(images, labels)}
    splits: dict[str, LabelSplit] = {}
    for name, split in folders.items():
        if split in splits:
            raise TwinsError(f"{images}: several folders are for {split}; keep one of them")
        if (labels / name).is_dir():
            splits[split] = _pair(images / name, labels / name)
    if not splits:
        raise TwinsError(f"{labels}: has none of the folders {', '.join(folders)} of {images}; name them alike")
    return layout, splits


def find_values(splits: Sequence[LabelSplit], limit: int | None) -> set[int]:
    """Return the values of the label maps.

    Args:
        splits: Splits to read.
        limit: Number of label maps to read per split, evenly spread; `None` reads all.

    Raises:
        TwinsError: If no label map can be used.
    """
    counts, _ = count_values([path for split in splits for path in spread(split.label_paths(), limit)])
    return set(np.flatnonzero(counts.sum(axis=0)).tolist())


def spread(paths: Sequence[_Item], limit: int | None) -> Sequence[_Item]:
    """Return at most `limit` items, such as paths, evenly spread."""
    if limit is None or len(paths) <= limit:
        return paths
    return [paths[index * len(paths) // limit] for index in range(limit)]


def count_values(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read label maps, and count their values. Unusable ones are skipped; the check of the data finds them.

    Returns:
        The number of pixels of each value, int64 (N, 256), and the width and height of each label map, int64 (N, 2).

    Raises:
        TwinsError: If no label map can be read, or none holds one 8-bit value per pixel.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(_count, paths)
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        rows = list(tqdm(results, desc="reading labels", total=len(paths), unit=" images", delay=2, disable=None))
    good = [row for row in rows if not isinstance(row, str)]
    if not good:
        raise TwinsError(f"no label map can be used; the first is {str(paths[0])!r}, which {rows[0]}")
    counts, sizes = zip(*good, strict=True)
    return np.array(counts, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _count(path: Path) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Return the number of pixels of each value and the size of a label map, or what is wrong with it."""
    try:
        with open_image(path) as image:
            if image.mode not in ("L", "P", "1"):
                return f"has the mode {image.mode}: save one 8-bit value per pixel, the class"
            return np.bincount(np.asarray(image, dtype=np.uint8).ravel(), minlength=256), image.size
    except UNREADABLE as error:
        return f"cannot be read ({one_line(error)})"


def find_classes(root: Path, layout: str, splits: Sequence[LabelSplit]) -> tuple[tuple[str, ...], bool, str]:
    """Return the names of the classes, whether 0 means that a pixel is ignored, and a sentence that says why.

    Names come from `classes.json` (a list, or an object from values to names), `classes.txt` (one name per line),
    CVAT's `labelmap.txt` or ADE20K's `objectInfo150.csv`; without these, they are made from the values found.

    Raises:
        TwinsError: If the file of names cannot be used, or the label maps do not fit it.
    """
    file = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        return _classes_from_values(root, layout, find_values(splits, None) - {IGNORED})
    numbered, names = _read_names(file)
    values = find_values(splits, 500) - {IGNORED}
    largest = max(values, default=0)
    first = min(numbered) if numbered is not None else int(largest == len(names))
    if largest >= first + len(names):
        raise TwinsError(
            f"{file} names {len(names)} classes, but label maps have the value {largest}: correct the file or the maps"
        )
    if first == 1:
        return names, True, f"Label maps use 1 to {len(names)} for the classes of {file.name}; 0 is ignored."
    return names, False, f"Label maps use 0 to {len(names) - 1} for the classes of {file.name}."


def _classes_from_values(root: Path, layout: str, values: set[int]) -> tuple[tuple[str, ...], bool, str]:
    if not values - {0}:
        raise TwinsError(
            f"{root}: the label maps contain only the values 0 and 255, and 255 means that a pixel is ignored: "
            "save the number of the class, such as 1 for an object"
        )
    largest = max(values)
    names = tuple(f"class {value}" for value in range(1, largest + 1))
    if layout == "ADE20K" and largest > 1:
        reason = f"There is no file of class names; label maps use 1 to {largest} for the classes, and 0 is ignored."
        return names, True, reason
    reason = f"There is no file of class names; label maps use 0 for the background and 1 to {largest} for the classes."
    return ("background", *names), False, reason


def _read_names(file: Path) -> tuple[list[int] | None, tuple[str, ...]]:
    """Return the value of each class in ascending order, `None` if the file does not say it, and the names."""
    try:
        content = _parse_names(file)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise TwinsError(f"{file} cannot be used ({one_line(error)}): list the names of the classes in it") from None
    if isinstance(content, list):
        return None, _checked(file, content)
    values = sorted(content)
    if not values or values[0] not in (0, 1) or values != list(range(values[0], values[0] + len(values))):
        raise TwinsError(f"{file} numbers the classes {reprlib.repr(values)}: number them from 0 or 1 without gaps")
    return values, _checked(file, [content[value] for value in values])


def _parse_names(file: Path) -> list[object] | dict[int, object]:
    """Return the names in a file, by value if it says the values. Errors are those of the parsers."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        return {int(row["Idx"]): row["Name"] for row in csv.DictReader(text.splitlines())}
    if file.suffix == ".json":
        content = json.loads(text)
        return content if isinstance(content, list) else {int(key): name for key, name in content.items()}
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    # CVAT's lines are `name:colour:parts:actions`.
    return [line.partition(":")[0] for line in lines] if file.stem == "labelmap" else list(lines)


def _checked(file: Path, names: Sequence[object]) -> tuple[str, ...]:
    bad = [name for name in names if not isinstance(name, str) or not name]
    if bad or not names:
        raise TwinsError(f"{file} names the classes {bad[:3]}: list their names")
    return tuple(str(name) for name in names)


def _pair(image_dir: Path, label_dir: Path) -> LabelSplit:
    """Match images and label maps by name, and find the suffixes."""
    images = sorted(_relative_files(image_dir, IMAGE_SUFFIXES))
    labels = set(_relative_files(label_dir, {".png"}))
    if not images:
        raise TwinsError(f"{image_dir}: has no images; put them there")
    suffixes = Counter(Path(name).suffix for name in images)
    if len(suffixes) > 1:
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes.most_common())
        raise TwinsError(f"{image_dir}: images have different suffixes: {counts}; convert them to one format")
    (image_suffix,) = suffixes
    names = [name.removesuffix(image_suffix) for name in images]
    label_suffix = _label_suffix(names, labels)
    matched = tuple(name for name in names if f"{name}{label_suffix}" in labels) if label_suffix else ()
    if not matched or label_suffix is None:
        example = next(iter(sorted(labels)), "none")
        raise TwinsError(
            f"{label_dir}: no label map begins with the name of an image, such as {names[0]} (a label map is {example})"
        )
    return LabelSplit(image_dir, label_dir, matched, image_suffix, label_suffix, len(names) - len(matched))


def _label_suffix(names: Sequence[str], labels: set[str]) -> str | None:
    """Return the most frequent of the endings that label maps add to the names of images."""
    if any(f"{name}.png" in labels for name in names):
        return ".png"
    # An ending begins with a separator, so that the image 1 does not match the label map 10.png.
    endings = Counter(
        label.removeprefix(name)
        for name in names[:_SAMPLE]
        for label in labels
        if label.startswith(name) and label[len(name)] in "_-."
    )
    return max(sorted(endings), key=endings.__getitem__) if endings else None


def _relative_files(folder: Path, suffixes: frozenset[str] | set[str]) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in suffixes:
            yield path.relative_to(folder).as_posix()
