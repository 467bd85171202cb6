"""Read and check data in COCO format: one annotation file, one folder of images.

`load_coco` checks everything before a run starts, so that a broken file is found within seconds and not after hours.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import TwinsError, one_line
from .coco_checks import content_problem, entries_by_id, is_flat, is_key, reference_problem
from .image_files import NUM_THREADS, UNREADABLE, check_image, exif_orientation, is_inside, open_image
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
    allow_outside: bool = False,
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
        allow_outside: Whether a `file_name` may lead out of `image_dir`, by `..` or as an absolute path.

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
        annotation for annotation in content["annotations"] if not is_key(annotation.get("image_id"), dropped_ids)
    ]

    problem_by_image_id = _check_images(image_dir, entries, refuse_rotated, allow_outside)
    problems = list(problem_by_image_id.values())
    left_out: list[str] = []
    good_annotations: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in kept_ids}
    seen_ids: set[int] = set()
    for annotation in annotations:
        problem = reference_problem(annotation, image_by_id, category_by_id, seen_ids)
        is_harmless = problem is None and not strict and is_flat(annotation.get("bbox"))
        problem = problem or content_problem(annotation, image_by_id)
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
        if is_key(annotation.get("image_id"), found):
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
    except RecursionError as error:
        raise TwinsError(
            f"{ann_file}: its JSON is nested too deeply; give an annotation file in COCO format"
        ) from error
    except ValueError as error:  # a number with thousands of digits
        raise TwinsError(f"{ann_file}: cannot be read ({one_line(error)}); correct the number") from error
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


def _check_images(
    image_dir: Path, entries: list[dict[str, Any]], refuse_rotated: bool, allow_outside: bool
) -> dict[int, str]:
    """Return the problem of each bad image by image id, in the order of `entries`."""

    def check(entry: dict[str, Any]) -> str | None:
        path = image_dir / entry["file_name"]
        problem = None if allow_outside else outside_problem(path, image_dir)
        problem = problem or _image_problem(path, entry["width"], entry["height"])
        return problem or (_orientation_problem(path) if refuse_rotated else None)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found: Iterable[str | None] = pool.map(check, entries)
        # The progress bar appears on a terminal after two seconds, so only for large data sets.
        found = tqdm(found, desc="checking images", total=len(entries), unit=" images", delay=2, disable=None)
        return {entry["id"]: problem for entry, problem in zip(entries, found, strict=True) if problem is not None}


def outside_problem(path: Path, image_dir: Path) -> str | None:
    """Return a sentence that says that an image is not in its folder; `None` if it is."""
    if is_inside(path, image_dir):
        return None
    return f"image {one_line(path)} is not in the folder {image_dir}; add --allow-outside if it may be read"


def _image_problem(path: Path, width: int, height: int) -> str | None:
    """Describe what is wrong with an image file that should have this size; return `None` if it is valid."""
    if not os.path.isfile(path):  # unlike `Path.is_file`, it is false for a name that is too long
        return f"image {one_line(path)} is missing"
    try:
        stored = check_image(path)
    except UNREADABLE as error:
        return f"image {one_line(path)} cannot be read ({one_line(error)})"
    if stored != (width, height):
        return f"image {one_line(path)} is {stored[0]}x{stored[1]} pixels, but its entry says {width}x{height}"
    return None


def _orientation_problem(path: Path) -> str | None:
    with open_image(path) as image:
        orientation = exif_orientation(image)
    if orientation == 1:
        return None
    return (
        f"image {one_line(path)} has the EXIF orientation {orientation}, which detectron2 applies to the image but "
        "not to its boxes: remove it from the file"
    )
