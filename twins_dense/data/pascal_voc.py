"""Read boxes in Pascal VOC format: one XML file per image.

Coordinates follow the VOC development kit ("the top-left pixel in the image has coordinates (1,1)"; its evaluation
computes widths as xmax - xmin + 1): they are 1-based indices of the first and the last pixel of a box. In COCO's
coordinates, which run along the edges of pixels, the box is therefore (xmin - 1, ymin - 1, xmax, ymax). detectron2
reads VOC in the same way. Boxes from tools that write other coordinates, such as supervision, are off by up to a pixel.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tqdm import tqdm

from ..errors import TwinsError, one_line
from .coco_content import CocoContent, CocoSplits, box_annotation, build_content
from .coco_folder import split_of
from .image_files import IMAGE_SUFFIXES, NUM_THREADS, UNREADABLE, open_image
from .image_lists import read_lines

_LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")


def find_pascal_voc(root: Path) -> list[Path]:
    """Return the first XML file in `Annotations`, or in each folder of a split, such as `train` and `valid`."""
    folders = [root / "Annotations", root / "annotations", *_split_folders(root)]
    return [path for folder in folders for path in sorted(folder.glob("*.xml"))[:1]]


def read_pascal_voc(root: Path) -> CocoSplits:
    """Read all splits of a VOC data set. Classes are sorted by name.

    The lists `ImageSets/Main/{train,val,test}.txt` define the splits; without them, all images are for training.
    Difficult objects are trained on, but ignored by the evaluation, as in the VOC challenge.

    Raises:
        TwinsError: If an image list cannot be used.
    """
    notes: list[str] = []
    pairs = _split_pairs(root, notes)
    problems: list[str] = []
    parsed: dict[str, list[tuple[str, int, int, list[dict[str, Any]]]]] = {}
    for split, files in pairs.items():
        parsed[split] = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            results = pool.map(lambda pair: _read_file(*pair), files)
            progress = tqdm(results, desc=f"reading {split}", total=len(files), unit=" images", delay=2, disable=None)
            for (_, image), (size, objects, found) in zip(files, progress, strict=True):
                problems += found
                if size is not None:
                    parsed[split].append((image.relative_to(root).as_posix(), *size, objects))
    classes = sorted({entry["name"] for entries in parsed.values() for *_, objects in entries for entry in objects})
    if not classes:
        reason = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise TwinsError(f"{root}: the XML files contain no objects{reason}")
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    splits = {}
    num_difficult = sum(
        "difficult" in entry for entries in parsed.values() for *_, objects in entries for entry in objects
    )
    for split, entries in parsed.items():
        numbered = [
            (name, width, height, [{"category_id": label_of[entry.pop("name")], **entry} for entry in objects])
            for name, width, height, objects in entries
        ]
        splits[split] = CocoContent(root, build_content(numbered, classes))
    if num_difficult:
        notes.append(f"{num_difficult} objects are difficult: trained on, and ignored by the evaluation.")
    return CocoSplits("Pascal VOC", splits, tuple(notes), tuple(problems))


def _split_folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and split_of(path.name)]


def _split_pairs(root: Path, notes: list[str]) -> dict[str, list[tuple[Path, Path]]]:
    """Return the XML file and the image of each image, by split."""
    ann_dir = next((root / name for name in ("Annotations", "annotations") if any(root.glob(f"{name}/*.xml"))), None)
    if ann_dir is None:
        return {
            str(split_of(folder.name)): _all_pairs(folder, folder, notes)
            for folder in _split_folders(root)
            if any(folder.glob("*.xml"))
        }
    image_dir = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), ann_dir)
    pairs = {}
    for split, names in _LISTS.items():
        path = next((file for name in names if (file := root / "ImageSets/Main" / f"{name}.txt").is_file()), None)
        if path is None:
            continue
        files = [ann_dir / f"{name}.xml" for name in dict.fromkeys(read_lines(path))]
        if not any(map(os.path.isfile, files)):
            notes.append(f"{split} is ignored: no image of {path.name} has an annotation.")
            continue
        pairs[split] = _pairs(files, image_dir)
    return pairs or {"train": _all_pairs(ann_dir, image_dir, notes)}


def _all_pairs(ann_dir: Path, image_dir: Path, notes: list[str]) -> list[tuple[Path, Path]]:
    """Return all XML files of a folder with their images, and note images without one."""
    files = sorted(ann_dir.glob("*.xml"))
    num_unused = len(_images(image_dir).keys() - {file.stem for file in files})
    if num_unused:
        notes.append(f"Images of {image_dir.name} without an XML file are left out: {num_unused}.")
    return _pairs(files, image_dir)


def _pairs(files: Iterable[Path], image_dir: Path) -> list[tuple[Path, Path]]:
    images = _images(image_dir)
    return [(file, images.get(file.stem, image_dir / f"{file.stem}.jpg")) for file in files]


def _images(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their name without the suffix."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _read_file(file: Path, image_path: Path) -> tuple[tuple[int, int] | None, list[dict[str, Any]], list[str]]:
    """Return the size of an image, its objects with their names, and problems; the size is `None` for a bad image."""
    try:
        with open_image(image_path) as image:
            size = image.size
    except UNREADABLE as error:
        return None, [], [f"image {one_line(image_path)} cannot be read ({one_line(error)})"]
    try:
        root, lines = _parse_xml(file.read_bytes())
    except (OSError, ValueError) as error:
        return None, [], [f"{one_line(file)}: {one_line(error)}"]
    objects, problems = [], []
    for element in root.findall("object"):
        try:
            objects.append(_read_object(element, size))
        except ValueError as error:
            problems.append(f"{one_line(file)}, line {lines[element]}: {one_line(error)}")
    try:
        _check_size(root, size)
    except ValueError as error:
        return None, [], [f"{one_line(file)}, line {lines[root.find('size')]}: {one_line(error)}"]
    return size, objects, problems


def _check_size(root: Element, size: tuple[int, int]) -> None:
    """Raise ValueError if the size in an XML file is not that of the image. Some tools write 0 for an unknown size."""
    width, height = (_number(root, f"size/{side}", default=0) for side in ("width", "height"))
    if width and height and (width, height) != size:
        turned = "; remove its EXIF orientation if it is rotated" if (height, width) == size else ""
        raise ValueError(f"size is {width:g}x{height:g}, but the image has {size[0]}x{size[1]} pixels{turned}")


def _parse_xml(content: bytes) -> tuple[Element, dict[Element | None, int]]:
    """Return the root element of an XML file and the line of each element.

    A document type declaration is refused, because its entities can expand to gigabytes.

    Raises:
        ValueError: If the file is not XML, or has a document type declaration.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    lines: dict[Element | None, int] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*arguments: Any) -> None:
        raise ValueError("has a document type declaration (DOCTYPE); remove it")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"is not valid XML ({error})") from None
    return builder.close(), lines


def _read_object(element: Element, size: tuple[int, int]) -> dict[str, Any]:
    """Return the annotation of an object, with its `name`, and `difficult` if it is."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("object without a name")
    if element.find("bndbox") is None:
        raise ValueError(f"object {reprlib.repr(name)} has no bndbox")
    x1, y1, x2, y2 = (_number(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise ValueError(f"object {reprlib.repr(name)} has xmax < xmin or ymax < ymin")
    if x1 > size[0] or y1 > size[1] or x2 < 1 or y2 < 1:
        raise ValueError(f"object {reprlib.repr(name)} is outside its image of {size[0]}x{size[1]} pixels")
    box = box_annotation(x1 - 1, y1 - 1, x2, y2, *size)
    difficult = {"difficult": 1} if _number(element, "difficult", default=0) else {}
    return {"name": name, **box, **difficult}


def _number(element: Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} is {reprlib.repr(text)}; it must be a number")
    return value
