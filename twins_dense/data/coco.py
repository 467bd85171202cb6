"""Read and check data in COCO format: one annotation file, one folder of images.

`load_coco` checks everything before a run starts, so that a broken file is found within seconds and not after hours.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import TwinsError, one_line
from .coco_masks import are_finite_numbers, segmentation_problem
from .image_files import NUM_THREADS, UNREADABLE, check_image, exif_orientation
from .problems import data_error


@dataclass(frozen=True)
class CocoImage:
    """An image and its annotations.

    Attributes:
        id: Image id in the annotation file.
        path: Path of the image file.
        width: Width in pixels.
        height: Height in pixels.
        annotations: Dictionaries of the annotation file, unchanged and in its order, crowds included.
    """

    id: int
    path: Path
    width: int
    height: int
    annotations: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CocoData:
    """A checked data set.

    Attributes:
        ann_file: Path of the annotation file.
        categories: Dictionaries of the annotation file, sorted by id. Ids may have gaps: COCO's 80 ids go up to 90.
        images: Images, sorted by id.
        problems: One line per image or annotation that was left out.
    """

    ann_file: Path
    categories: tuple[dict[str, Any], ...]
    images: tuple[CocoImage, ...]
    problems: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories, in the order of `category_ids`."""
        return tuple(category["name"] for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the categories, in ascending order."""
        return tuple(category["id"] for category in self.categories)


def load_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    *,
    skip_bad: bool = False,
    strict: bool = False,
    indices: int | None = None,
    refuse_rotated: bool = False,
) -> CocoData:
    """Read an annotation file in COCO format and check it together with its images.

    All problems of single images and annotations (a missing or truncated file, an empty box, an unknown category, ...)
    are collected first, so that the error says how many there are. A box that is partly outside its image and an
    annotation without a segmentation are valid. An annotation whose box has a width or a height of exactly zero is
    left out, because it marks nothing that could be learned: COCO 2017 itself has two of them.

    Args:
        ann_file: Path of the annotation file (JSON).
        image_dir: Folder that the `file_name` entries are relative to.
        skip_bad: Whether to leave out bad annotations, and bad images with their annotations, instead of raising.
        strict: Whether boxes with a width or a height of zero are errors as well.
        indices: Number of images to keep and check, in ascending order of ids; `None` keeps all.
        refuse_rotated: Whether an image with an EXIF orientation counts as bad, for data loaders that would rotate it.

    Raises:
        TwinsError: If the annotation file as a whole cannot be used, or if nothing is left after skipping.
        DataError: If there are problems and `skip_bad` is false.
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    if indices is not None and indices < 1:
        raise TwinsError(f"indices={indices}: give the number of images to keep, at least 1, or omit it to keep all")
    content = read_annotation_file(ann_file)
    category_by_id = entries_by_id(ann_file, content, "categories", {"name": str})
    image_by_id = entries_by_id(ann_file, content, "images", {"file_name": str, "width": int, "height": int})
    if not image_dir.is_dir():
        raise TwinsError(f"{image_dir}: no such folder; it should hold the images of {ann_file}")

    kept_ids = sorted(image_by_id)[:indices]
    dropped_ids = image_by_id.keys() - set(kept_ids)
    entries = [image_by_id[image_id] for image_id in kept_ids]
    annotations = [
        annotation for annotation in content["annotations"] if not _is_key(annotation.get("image_id"), dropped_ids)
    ]

    problem_by_image_id = _check_images(image_dir, entries, refuse_rotated)
    problems = list(problem_by_image_id.values())
    left_out: list[str] = []
    good_annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in kept_ids}
    seen_ids: set[int] = set()
    for annotation in annotations:
        problem = _reference_problem(annotation, image_by_id, category_by_id, seen_ids)
        is_harmless = problem is None and not strict and _is_flat(annotation.get("bbox"))
        problem = problem or _shape_problem(annotation, image_by_id)
        if problem is None:
            seen_ids.add(annotation["id"])
            good_annotations[annotation["image_id"]].append(annotation)
        else:
            (left_out if is_harmless else problems).append(problem)

    if problems and not skip_bad:
        raise data_error(ann_file, problems, "fix the file, or use --skip-bad to train on the rest")
    problems += left_out
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
        raise TwinsError(f"{ann_file}: no {what} are left to use{reason}; fix the file")
    categories = tuple(category_by_id[category_id] for category_id in sorted(category_by_id))
    return CocoData(ann_file=ann_file, categories=categories, images=images, problems=tuple(problems))


def is_instance(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation marks one object, and not a crowd region, on which detectors are not trained."""
    return not annotation.get("iscrowd", 0)


def training_images(data: CocoData, *, filter_empty: bool, with_masks: bool) -> tuple[CocoImage, ...]:
    """Return the images to train a detector on; with `filter_empty`, only images with at least one instance.

    Raises:
        TwinsError: If no image is left, or if `with_masks` is true and an instance has no segmentation.
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
                    f"{data.ann_file}: annotation {annotation.get('id')} has no segmentation, which Mask R-CNN "
                    "needs; add it, or train a RetinaNet on the boxes"
                )
    return images


def read_image_names(ann_file: Path) -> dict[int, str]:
    """Return the file name of each image in an annotation file by image id, in ascending order. Check nothing else.

    Raises:
        TwinsError: If the file or an entry of its `images` cannot be used.
    """
    content = read_annotation_file(ann_file, ("images",))
    entries = entries_by_id(ann_file, content, "images", {"file_name": str})
    return {image_id: entries[image_id]["file_name"] for image_id in sorted(entries)}


def read_instances(ann_file: Path, *, indices: int | None = None) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations that are instances by image id, with an empty list for images without one.

    Images and annotations are not checked; ids are in ascending order.

    Args:
        ann_file: Path of the annotation file (JSON).
        indices: Number of images to keep, in ascending order of ids; `None` keeps all.

    Raises:
        TwinsError: If the file or an entry of its `images` cannot be used.
    """
    content = read_annotation_file(ann_file, ("images", "annotations"))
    ids = sorted(entries_by_id(ann_file, content, "images", {}))[:indices]
    found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in ids}
    for annotation in filter(is_instance, content["annotations"]):
        if _is_key(annotation.get("image_id"), found):
            found[annotation["image_id"]].append(annotation)
    return found


def read_annotation_file(
    ann_file: Path, keys: tuple[str, ...] = ("images", "annotations", "categories")
) -> dict[str, Any]:
    """Read an annotation file, and check that each of these keys has a list of objects."""
    if ann_file.is_dir():
        raise TwinsError(f"{ann_file}: is a folder; give the annotation file (JSON) inside it")
    try:
        content = json.loads(ann_file.read_bytes())
    except FileNotFoundError:
        raise TwinsError(f"{ann_file}: no such file; give an annotation file in COCO format (JSON)") from None
    except OSError as error:
        raise TwinsError(f"{ann_file}: cannot be read ({one_line(error)}); check the file") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise TwinsError(f"{ann_file}: broken JSON at {where} ({error.msg}); create or download it again") from error
    except UnicodeDecodeError as error:
        raise TwinsError(f"{ann_file}: is not JSON text ({one_line(error)}); give the annotation file") from error
    if not isinstance(content, dict):
        raise TwinsError(f"{ann_file}: holds a JSON {type(content).__name__}; COCO format needs an object")
    for key in keys:
        if key not in content:
            raise TwinsError(
                f"{ann_file}: has no {key!r} (it has {reprlib.repr(sorted(content))}); COCO format needs it"
            )
        if not isinstance(content[key], list):
            raise TwinsError(f"{ann_file}: {key!r} is a {type(content[key]).__name__}; COCO format needs a list")
        for position, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise TwinsError(f"{ann_file}: {key}[{position}] is {reprlib.repr(entry)}; it must be an object")
    return content


def entries_by_id(
    ann_file: Path, content: dict[str, Any], key: str, fields: dict[str, type]
) -> dict[int, dict[str, Any]]:
    """Return the entries of one list by id. Ids must be unique whole numbers; `fields` gives the other types."""
    entry_by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(content[key]):
        for field, kind in {"id": int, **fields}.items():
            if type(entry.get(field)) is not kind:
                found = reprlib.repr(entry[field]) if field in entry else "missing"
                need = "a whole number" if kind is int else "a string"
                raise TwinsError(f"{ann_file}: {key}[{position}]: {field!r} is {found}; it must be {need}")
        if entry["id"] in entry_by_id:
            raise TwinsError(f"{ann_file}: two of the {key} have the id {entry['id']}; ids must be unique")
        entry_by_id[entry["id"]] = entry
    if not entry_by_id:
        raise TwinsError(f"{ann_file}: {key!r} is empty; there is nothing to use")
    return entry_by_id


def _check_images(image_dir: Path, entries: list[dict[str, Any]], refuse_rotated: bool) -> dict[int, str]:
    """Return the problem of each bad image by image id, in the order of `entries`."""

    def check(entry: dict[str, Any]) -> str | None:
        path = image_dir / entry["file_name"]
        problem = _image_problem(path, entry["width"], entry["height"])
        return problem or (_orientation_problem(path) if refuse_rotated else None)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found: Iterable[str | None] = pool.map(check, entries)
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        found = tqdm(found, desc="checking images", total=len(entries), unit=" images", delay=2, disable=None)
        return {entry["id"]: problem for entry, problem in zip(entries, found, strict=True) if problem is not None}


def _image_problem(path: Path, width: int, height: int) -> str | None:
    """Describe what is wrong with an image file that should have this size; return `None` if it is valid."""
    if not path.is_file():
        return f"image {one_line(path)} is missing"
    try:
        stored = check_image(path)
    except UNREADABLE as error:
        return f"image {one_line(path)} cannot be read ({one_line(error)})"
    if stored != (width, height):
        return f"image {one_line(path)} is {stored[0]}x{stored[1]} pixels, but its entry says {width}x{height}"
    return None


def _orientation_problem(path: Path) -> str | None:
    with Image.open(path) as image:
        orientation = exif_orientation(image)
    if orientation == 1:
        return None
    return (
        f"image {one_line(path)} has the EXIF orientation {orientation}, which detectron2 applies to the image but "
        "not to its boxes: remove it from the file"
    )


def _reference_problem(
    annotation: dict[str, Any],
    image_by_id: dict[int, dict[str, Any]],
    category_by_id: dict[int, dict[str, Any]],
    seen_ids: set[int],
) -> str | None:
    """Describe what is wrong with the ids of an annotation; return `None` if they are valid."""
    if not _is_key(annotation.get("image_id"), image_by_id):
        name = f"annotation {reprlib.repr(annotation.get('id'))}"
        return f"{name} has an unknown image id {reprlib.repr(annotation.get('image_id'))}"
    name = _describe(annotation, image_by_id)
    if type(annotation.get("id")) is not int:
        return f"{name} has an id that is not a whole number"
    if annotation["id"] in seen_ids:
        return f"{name} has the id of an earlier annotation"
    if not _is_key(annotation.get("category_id"), category_by_id):
        return f"{name} has an unknown category id {reprlib.repr(annotation.get('category_id'))}"
    return None


def _shape_problem(annotation: dict[str, Any], image_by_id: dict[int, dict[str, Any]]) -> str | None:
    """Describe what is wrong with the box and the segmentation of an annotation; return `None` if they are valid."""
    image = image_by_id[annotation["image_id"]]
    box_problem = _box_problem(annotation.get("bbox"), image["width"], image["height"])
    if box_problem is not None:
        return f"{_describe(annotation, image_by_id)}: bbox {reprlib.repr(annotation.get('bbox'))} {box_problem}"
    segmentation = annotation.get("segmentation")
    if segmentation:  # missing or empty in data with boxes only
        problem = segmentation_problem(segmentation, image["height"], image["width"])
        if problem is not None:
            return f"{_describe(annotation, image_by_id)}: segmentation {problem}"
    return None


def _describe(annotation: dict[str, Any], image_by_id: dict[int, dict[str, Any]]) -> str:
    image = image_by_id[annotation["image_id"]]
    return f"annotation {reprlib.repr(annotation.get('id'))} of image {one_line(image['file_name'])}"


def _is_flat(box: Any) -> bool:
    """Return whether a box has a width or a height of exactly zero, and nothing else is wrong with its numbers."""
    return isinstance(box, list) and len(box) == 4 and are_finite_numbers(box) and min(box[2:]) == 0


def _box_problem(box: Any, width: int, height: int) -> str | None:
    """Describe what is wrong with a box x, y, width, height in an image of this size; return `None` if it is valid."""
    if not isinstance(box, list) or len(box) != 4 or not are_finite_numbers(box):
        return "is not a list of four finite numbers x, y, width, height"
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return "has no area"
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        return f"is outside its image of {width}x{height} pixels"
    return None


def _is_key(value: Any, keys: Any) -> bool:
    """Return whether a JSON value is one of these ids. 1.0 and true are not the id 1, and lists are not hashable."""
    return type(value) is int and value in keys
