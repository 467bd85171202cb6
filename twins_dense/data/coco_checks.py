"""Check the entries of COCO annotation files: every field that is read, and nothing else."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TwinsError, one_line
from .coco_masks import are_finite_numbers, margin_of, segmentation_problem

_MAX_ID = 2**63 - 1
_MAX_AREA = 1e10  # pixels; COCO's metric ignores larger objects


def entries_by_id(
    ann_file: Path, content: Mapping[str, Any], key: str, fields: Mapping[str, type]
) -> dict[int, dict[str, Any]]:
    """Return the entries of one list by id.

    Args:
        ann_file: Path of the annotation file, for messages.
        content: Content of the annotation file.
        key: Key of the list.
        fields: Types of other fields than the id: `int`, which stands for whole numbers of at least 0, or `str`.

    Raises:
        TwinsError: If the list is empty, two entries have the same id, or a field has another type.
    """
    entry_by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(content[key]):
        for field, kind in {"id": int, **fields}.items():
            if not _is_valid(entry.get(field), kind):
                found = reprlib.repr(entry[field]) if field in entry else "missing"
                need = "a whole number from 0 to 2^63 - 1" if kind is int else "a string of Unicode characters"
                raise TwinsError(f"{ann_file}: {key}[{position}]: {field!r} is {found}; it must be {need}")
        if entry["id"] in entry_by_id:
            raise TwinsError(f"{ann_file}: two of the {key} have the id {entry['id']}; ids must be unique")
        entry_by_id[entry["id"]] = entry
    if not entry_by_id:
        raise TwinsError(f"{ann_file}: {key!r} is empty; there is nothing to use")
    return entry_by_id


def reference_problem(
    annotation: Mapping[str, Any],
    image_by_id: Mapping[int, Mapping[str, Any]],
    category_by_id: Mapping[int, Mapping[str, Any]],
    seen_ids: set[int],
) -> str | None:
    """Describe what is wrong with the ids of an annotation; return `None` if they are valid."""
    if not is_key(annotation.get("image_id"), image_by_id):
        name = f"annotation {reprlib.repr(annotation.get('id'))}"
        return f"{name} has an unknown image id {reprlib.repr(annotation.get('image_id'))}"
    name = _describe(annotation, image_by_id)
    if type(annotation.get("id")) is not int:
        return f"{name} has an id that is not a whole number"
    if annotation["id"] in seen_ids:
        return f"{name} has the id of an earlier annotation"
    if not is_key(annotation.get("category_id"), category_by_id):
        return f"{name} has an unknown category id {reprlib.repr(annotation.get('category_id'))}"
    return None


def content_problem(annotation: Mapping[str, Any], image_by_id: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Describe what is wrong with an annotation apart from its ids; return `None` if everything is valid."""
    image = image_by_id[annotation["image_id"]]
    width, height = image["width"], image["height"]
    box = annotation.get("bbox")
    problem = box_problem(box, width, height)
    problem = f"bbox {reprlib.repr(box)} {problem}" if problem else _field_problem(annotation)
    segmentation = annotation.get("segmentation")
    if problem is None and segmentation:  # missing or empty in data with boxes only
        problem = segmentation_problem(segmentation, height, width)
        problem = problem and f"segmentation {problem}"
    return problem and f"{_describe(annotation, image_by_id)}: {problem}"


def box_problem(box: Any, width: int, height: int) -> str | None:
    """Describe what is wrong with a box x, y, width, height in an image of this size; return `None` if it is valid."""
    if not _is_box(box):
        return "is not a list of four finite numbers x, y, width, height"
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return "has no area"
    if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
        return f"is outside its image of {width}x{height} pixels"
    margin = margin_of(height, width)
    if min(x, y) < -margin or max(x + box_width - width, y + box_height - height) > margin:
        return f"extends more than {margin} pixels beyond its image of {width}x{height} pixels"
    return None


def is_flat(box: Any) -> bool:
    """Return whether a box has a width or a height of exactly zero, and nothing else is wrong with its numbers."""
    return _is_box(box) and min(box[2:]) == 0


def is_flag(value: Any) -> bool:
    """Return whether a value is valid for `iscrowd`: 0 or 1, as a whole number or a bool."""
    return type(value) in (int, bool) and value in (0, 1)


def is_key(value: Any, keys: Any) -> bool:
    """Return whether a JSON value is one of these ids. 1.0 and true are not the id 1, and lists are not hashable."""
    return type(value) is int and value in keys


def _is_valid(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value <= _MAX_ID
    if not isinstance(value, str):
        return False
    try:
        value.encode()  # JSON can hold half of a surrogate pair, which can be neither printed nor part of a file name
    except UnicodeEncodeError:
        return False
    return True


def _describe(annotation: Mapping[str, Any], image_by_id: Mapping[int, Mapping[str, Any]]) -> str:
    image = image_by_id[annotation["image_id"]]
    return f"annotation {reprlib.repr(annotation.get('id'))} of image {one_line(image['file_name'])}"


def _field_problem(annotation: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with `iscrowd` or `area`, which may be missing; return `None` if they are valid."""
    crowd = annotation.get("iscrowd", 0)
    if not is_flag(crowd):
        return f"iscrowd {reprlib.repr(crowd)} is neither 0 nor 1"
    area = annotation.get("area")  # None counts as missing
    if area is not None and not (are_finite_numbers([area]) and 0 <= area <= _MAX_AREA):
        return f"area {reprlib.repr(area)} is not a number from 0 to {_MAX_AREA:g}; leave it out to compute it"
    return None


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and are_finite_numbers(box)
