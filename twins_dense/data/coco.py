"""Read and check data in COCO format: one annotation file, one folder of images.

`load_coco` looks at everything before a run starts, so that a broken file costs seconds and not a night.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from tqdm import tqdm

from ..errors import TwinsError, one_line
from .image_files import UNREADABLE, check_image, exif_orientation

NUM_THREADS = 8  # the check waits for the disk, not for the processor


@dataclass(frozen=True)
class CocoImage:
    """One image and what is annotated on it.

    Args:
        id: The image id of the annotation file.
        path: The image file.
        width: In pixels.
        height: In pixels.
        annotations: The dictionaries of the annotation file, unchanged and in its order; crowds included.
    """

    id: int
    path: Path
    width: int
    height: int
    annotations: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CocoData:
    """A checked data set.

    Args:
        ann_file: The annotation file that it came from.
        categories: The dictionaries of the annotation file, sorted by id. Ids may have gaps: COCO's 80 go up to 90.
        images: Sorted by id.
        problems: One line for each thing that was left out; empty unless `load_coco` was told to skip bad data.
    """

    ann_file: Path
    categories: tuple[dict[str, Any], ...]
    images: tuple[CocoImage, ...]
    problems: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the categories, in the order of `category_ids`."""
        return tuple(category["name"] for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The ids of the categories, rising."""
        return tuple(category["id"] for category in self.categories)


def load_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    *,
    skip_bad: bool = False,
    indices: int | None = None,
    refuse_rotated: bool = False,
) -> CocoData:
    """Read an annotation file in COCO format and check it together with its images.

    Problems of single images and annotations (a missing or cut file, a box of no area, an unknown category, ...) are
    collected first, so that the error gives their number. A box that is partly outside its image is no problem, nor is
    an annotation without a segmentation.

    Args:
        ann_file: The JSON file.
        image_dir: The folder that its `file_name` entries are relative to.
        skip_bad: Leave out a bad annotation alone, and a bad image with its annotations, instead of raising.
        indices: Keep (and check) only the first images in the order of their ids, this many.
        refuse_rotated: Take an image with an EXIF orientation for bad, because its reader would apply that.

    Raises:
        TwinsError: in one line, where the annotation file as a whole can't be used, where there are problems that are
            not skipped, and where nothing is left after skipping.
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    if indices is not None and indices < 1:
        raise TwinsError(f"indices={indices}: give the number of images to keep, 1 or more, or leave it out for all")
    content = _read_json(ann_file)
    category_by_id = _entries_by_id(ann_file, content, "categories", {"name": str})
    image_by_id = _entries_by_id(ann_file, content, "images", {"file_name": str, "width": int, "height": int})
    if not image_dir.is_dir():
        raise TwinsError(f"{image_dir}: no such folder; looked for the images of {ann_file} there")

    kept_ids = sorted(image_by_id)[:indices]
    dropped_ids = image_by_id.keys() - set(kept_ids)
    entries = [image_by_id[image_id] for image_id in kept_ids]
    annotations = [
        annotation for annotation in content["annotations"] if not _is_key(annotation.get("image_id"), dropped_ids)
    ]

    problem_by_image_id = _check_images(image_dir, entries, refuse_rotated)
    problems = list(problem_by_image_id.values())
    good_annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in kept_ids}
    seen_ids: set[int] = set()
    for annotation in annotations:
        problem = _annotation_problem(annotation, image_by_id, category_by_id, seen_ids)
        if problem is None:
            seen_ids.add(annotation["id"])
            good_annotations[annotation["image_id"]].append(annotation)
        else:
            problems.append(problem)

    if problems and not skip_bad:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems, the first"
        raise TwinsError(f"{ann_file}: {count}: {problems[0]}; fix the file, or use --skip-bad to train on the rest")
    images = tuple(
        CocoImage(
            id=entry["id"],
            path=image_dir / entry["file_name"],
            width=entry["width"],
            height=entry["height"],
            annotations=tuple(good_annotations[entry["id"]]),
        )
        for entry in entries
        if entry["id"] not in problem_by_image_id
    )
    if not images or (annotations and not any(image.annotations for image in images)):
        what = "annotations" if images else "images"
        reason = f": {len(problems)} problems, the first: {problems[0]}" if problems else ""
        raise TwinsError(f"{ann_file}: no {what} left to use{reason}; fix the file")
    categories = tuple(category_by_id[category_id] for category_id in sorted(category_by_id))
    return CocoData(ann_file=ann_file, categories=categories, images=images, problems=tuple(problems))


def is_instance(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is of one object, and not of a crowd region, which detectors don't learn from."""
    return not annotation.get("iscrowd", 0)


def training_images(data: CocoData, *, filter_empty: bool, with_masks: bool) -> tuple[CocoImage, ...]:
    """The images to train a detector on: with `filter_empty` those with an instance alone.

    Raises:
        TwinsError: where none is left, or, `with_masks`, an instance has no segmentation.
    """
    images = data.images
    if filter_empty:
        images = tuple(image for image in images if any(map(is_instance, image.annotations)))
        if not images:
            raise TwinsError(f"{data.ann_file} has no image with an instance: check its annotations")
    if with_masks:
        for annotation in (annotation for image in images for annotation in filter(is_instance, image.annotations)):
            if not annotation.get("segmentation"):
                raise TwinsError(
                    f"{data.ann_file}: annotation {annotation.get('id')} has no segmentation, which Mask R-CNN learns "
                    "from; add it, or train a RetinaNet on the boxes"
                )
    return images


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask that a COCO segmentation describes.

    Args:
        segmentation: Polygons (a list of flat lists x, y, x, y, ... in pixels), whose union is taken, or a
            run-length code {"counts": ..., "size": [height, width]}; its counts are a list, or compressed (str, bytes).
            Not an empty one: such an annotation has a box only.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        uint8 (height, width), 0 outside and 1 inside.

    Raises:
        TwinsError: where the segmentation is malformed or is made for another size.
    """
    problem = _segmentation_problem(segmentation, height, width)
    if problem is not None:
        raise TwinsError(f"segmentation {problem}; `load_coco` finds the annotation that it belongs to")
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    run_lengths = _run_lengths(segmentation["counts"])
    # Runs of zeros and ones in turn, down the columns. Not mask_utils.decode: it relies on what NumPy 2 deprecates.
    values = (np.arange(len(run_lengths)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, run_lengths).reshape(width, height).T)


def read_image_names(ann_file: Path) -> dict[int, str]:
    """The names of the images of an annotation file by their ids, rising; nothing else in the file is looked at.

    Raises:
        TwinsError: where the file or an entry of its `images` can't be used.
    """
    content = _read_json(ann_file, ("images",))
    entries = _entries_by_id(ann_file, content, "images", {"file_name": str})
    return {image_id: entries[image_id]["file_name"] for image_id in sorted(entries)}


def _read_json(ann_file: Path, keys: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """The annotation file as an object with these lists of objects."""
    if ann_file.is_dir():
        raise TwinsError(f"{ann_file}: is a folder; give the annotation file (JSON) inside it")
    try:
        content = json.loads(ann_file.read_bytes())
    except FileNotFoundError:
        raise TwinsError(f"{ann_file}: no such file; looked for annotations in COCO format (JSON) there") from None
    except OSError as error:
        raise TwinsError(f"{ann_file}: can't be read ({one_line(error)})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise TwinsError(f"{ann_file}: broken JSON at {where} ({error.msg}); write or download it again") from error
    except UnicodeDecodeError as error:
        raise TwinsError(f"{ann_file}: is not JSON text ({one_line(error)}); give the annotation file") from error
    if not isinstance(content, dict):
        raise TwinsError(f"{ann_file}: holds a JSON {type(content).__name__}; COCO format needs an object")
    for key in keys:
        if key not in content:
            raise TwinsError(f"{ann_file}: has no {key!r} (it has {reprlib.repr(sorted(content))}); COCO needs it")
        if not isinstance(content[key], list):
            raise TwinsError(f"{ann_file}: {key!r} is a {type(content[key]).__name__}; COCO format needs a list")
        for position, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise TwinsError(f"{ann_file}: {key}[{position}] is {reprlib.repr(entry)}; it has to be an object")
    return content


def _entries_by_id(
    ann_file: Path, content: dict[str, Any], key: str, fields: dict[str, type]
) -> dict[int, dict[str, Any]]:
    """The entries of one list by their id; each needs a whole-number id of its own, and `fields` of these types."""
    entry_by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(content[key]):
        for field, kind in {"id": int, **fields}.items():
            if type(entry.get(field)) is not kind:
                found = reprlib.repr(entry[field]) if field in entry else "missing"
                need = "a whole number" if kind is int else "a text"
                raise TwinsError(f"{ann_file}: {key}[{position}]: {field!r} is {found}; it has to be {need}")
        if entry["id"] in entry_by_id:
            raise TwinsError(f"{ann_file}: two of the {key} have the id {entry['id']}; give each its own")
        entry_by_id[entry["id"]] = entry
    if not entry_by_id:
        raise TwinsError(f"{ann_file}: {key!r} is empty; there is nothing to use")
    return entry_by_id


def _check_images(image_dir: Path, entries: list[dict[str, Any]], refuse_rotated: bool) -> dict[int, str]:
    """The problem of each bad image by its id, in the order of `entries`."""

    def check(entry: dict[str, Any]) -> str | None:
        path = image_dir / entry["file_name"]
        problem = _image_problem(path, entry["width"], entry["height"])
        return problem or (_orientation_problem(path) if refuse_rotated else None)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found: Iterable[str | None] = pool.map(check, entries)
        # The bar is for large data sets only: it shows after two seconds, and only on a terminal.
        found = tqdm(found, desc="checking images", total=len(entries), unit=" images", delay=2, disable=None)
        return {entry["id"]: problem for entry, problem in zip(entries, found, strict=True) if problem is not None}


def _image_problem(path: Path, width: int, height: int) -> str | None:
    """What is wrong with an image file that is annotated as (width, height)."""
    if not path.is_file():
        return f"image {one_line(path)} is missing"
    try:
        stored = check_image(path)
    except UNREADABLE as error:
        return f"image {one_line(path)} can't be read ({one_line(error)})"
    if stored != (width, height):
        return f"image {one_line(path)} is {stored[0]}x{stored[1]} pixels, but its entry says {width}x{height}"
    return None


def _orientation_problem(path: Path) -> str | None:
    with Image.open(path) as image:
        orientation = exif_orientation(image)
    if orientation == 1:
        return None
    return (
        f"image {one_line(path)} has the EXIF orientation {orientation}, which detectron2 applies while boxes count "
        "stored pixels: remove it from the file"
    )


def _annotation_problem(
    annotation: dict[str, Any],
    image_by_id: dict[int, dict[str, Any]],
    category_by_id: dict[int, dict[str, Any]],
    seen_ids: set[int],
) -> str | None:
    """What is wrong with an annotation, or None."""
    name = f"annotation {reprlib.repr(annotation.get('id'))}"
    if not _is_key(annotation.get("image_id"), image_by_id):
        return f"{name} is of an unknown image id {reprlib.repr(annotation.get('image_id'))}"
    image = image_by_id[annotation["image_id"]]
    name += f" of image {one_line(image['file_name'])}"
    if type(annotation.get("id")) is not int:
        return f"{name} has an id that is no whole number"
    if annotation["id"] in seen_ids:
        return f"{name} has the id of an earlier annotation"
    if not _is_key(annotation.get("category_id"), category_by_id):
        return f"{name} has an unknown category id {reprlib.repr(annotation.get('category_id'))}"
    box_problem = _box_problem(annotation.get("bbox"), image["width"], image["height"])
    if box_problem is not None:
        return f"{name}: bbox {reprlib.repr(annotation.get('bbox'))} {box_problem}"
    segmentation = annotation.get("segmentation")
    if segmentation:  # a missing or empty one is allowed: box-only data
        problem = _segmentation_problem(segmentation, image["height"], image["width"])
        if problem is not None:
            return f"{name}: segmentation {problem}"
    return None


def _box_problem(box: Any, width: int, height: int) -> str | None:
    """What is wrong with a box (x, y, width, height) on an image of this size, or None."""
    if not isinstance(box, list) or len(box) != 4 or not _are_finite_numbers(box):
        return "is not a list of four finite numbers x, y, width, height"
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return "has no area"
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        return f"is outside its image of {width}x{height} pixels"
    return None


def _segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with polygons or a run-length code on an image of this size, or None."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or not _are_finite_numbers(polygon):
                return f"has the polygon {reprlib.repr(polygon)}, which is not a list of finite numbers"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it takes x, y of 3 points or more"
        return None
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        return f"is {reprlib.repr(segmentation)}, neither polygons nor a run-length code with counts and size"
    if segmentation["size"] != [height, width]:
        return f"has the size {reprlib.repr(segmentation['size'])}, but its image has [{height}, {width}]"
    try:
        num_pixels = sum(_run_lengths(segmentation["counts"]))
    except ValueError:
        return f"has counts that are no run lengths: {reprlib.repr(segmentation['counts'])}"
    if num_pixels != height * width:
        return f"has counts that add up to {num_pixels}, but its image has {height * width} pixels"
    return None


def _run_lengths(counts: Any) -> list[int]:
    """The run lengths of a run-length code, compressed (str, bytes) or not (list).

    Raises:
        ValueError: where they are malformed. pycocotools doesn't look, and reads and writes past the end of such.
    """
    run_lengths = _decompress(counts) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(run_lengths, list) or any(type(length) is not int or length < 0 for length in run_lengths):
        raise ValueError("run lengths have to be whole numbers, 0 or more")
    return run_lengths


def _decompress(counts: str | bytes) -> list[int]:
    """The numbers of a compressed run-length code.

    Each number is written in groups of five bits, the lowest first, as the characters from "0" on. The sixth bit says
    that another group follows, and the highest bit of the last group is the sign. From the fourth number on, the
    difference to the number two places before is stored.
    """
    numbers: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8") if isinstance(counts, str) else counts:
        group = code - ord("0")
        if not 0 <= group < 64:
            raise ValueError(f"{chr(code)!r} is no character of a compressed run-length code")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a compressed run-length code ends within a number")
    return numbers


def _are_finite_numbers(values: list[Any]) -> bool:
    try:
        # One sum in C instead of a look at each: NaN and infinity come through, and anything but a number raises.
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _is_key(value: Any, keys: Any) -> bool:
    """Whether a value from JSON is an id among these: 1.0 and true are not the id 1, and a list can't be looked up."""
    return type(value) is int and value in keys
