"""COCO annotation files as plain data: what readers of other formats create, and how a part is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..errors import TwinsError

_DECIMALS = 3  # of coordinates in pixels


@dataclass(frozen=True)
class CocoContent:
    """The content of a COCO annotation file.

    Attributes:
        image_dir: Folder that the `file_name` entries are relative to; absolute.
        content: The JSON object, with `images`, `annotations` and `categories`.
        ann_file: Path of the file that has exactly this content; `None` if it has to be written.
    """

    image_dir: Path
    content: dict[str, Any]
    ann_file: Path | None = None

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.content["images"])


@dataclass(frozen=True)
class CocoSplits:
    """The splits that a reader found.

    Attributes:
        layout: Name of the layout.
        splits: Content of each split by name: "train", "val", "test".
        notes: Sentences about what was assumed or done.
        problems: One line per image or annotation that cannot be used.
    """

    layout: str
    splits: dict[str, CocoContent]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def box_annotation(x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> dict[str, Any]:
    """Return the fields of a COCO annotation for a box, which is clipped to its image of this size in pixels."""
    x1, x2 = (min(max(value, 0.0), float(width)) for value in (x1, x2))
    y1, y2 = (min(max(value, 0.0), float(height)) for value in (y1, y2))
    box = [round(value, _DECIMALS) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {"bbox": box, "area": round(box[2] * box[3], _DECIMALS), "iscrowd": 0, "segmentation": []}


def polygon_annotation(points: Sequence[tuple[float, float]], width: int, height: int) -> dict[str, Any]:
    """Return the fields of a COCO annotation for a polygon, which is clipped to its image of this size in pixels."""
    xs = [round(min(max(x, 0.0), float(width)), _DECIMALS) for x, _ in points]
    ys = [round(min(max(y, 0.0), float(height)), _DECIMALS) for _, y in points]
    # The shoelace formula; the index -1 closes the polygon.
    area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    flat = [value for point in zip(xs, ys, strict=True) for value in point]
    fields = box_annotation(min(xs), min(ys), max(xs), max(ys), width, height)
    return {**fields, "area": round(area, _DECIMALS), "segmentation": [flat]}


def build_content(
    images: Sequence[tuple[str, int, int, Sequence[dict[str, Any]]]], classes: Sequence[str]
) -> dict[str, Any]:
    """Number images, annotations and categories from 1, and return the content of a COCO file.

    Args:
        images: File name, width and height of each image, and its annotations without ids. `category_id` of an
            annotation counts from 1, in the order of `classes`.
        classes: Names of the classes.
    """
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, start=1)],
    }
    for image_id, (file_name, width, height, entries) in enumerate(images, start=1):
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in entries:
            ids = {"id": len(content["annotations"]) + 1, "image_id": image_id}
            content["annotations"].append({**ids, **annotation})
    return content


def choose_held_out(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose the names that are held out for validation: at least one, and not all.

    The choice depends on the names and the seed, not on the order of the names. Each name has a pseudo-random rank, so
    that a name added later changes the split of few others.

    Raises:
        TwinsError: If there are fewer than two names.
    """
    if len(names) < 2:
        found = "1 image" if names else "0 images"
        raise TwinsError(f"{found} cannot be split into training and validation images: add more images")
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:count])


def hold_out(source: CocoContent, fraction: float, seed: int) -> tuple[CocoContent, CocoContent]:
    """Divide the images and annotations into a part for training and a part for validation."""
    images = source.content["images"]
    held_out = choose_held_out([image["file_name"] for image in images], fraction, seed)
    held_ids = {image["id"] for image in images if image["file_name"] in held_out}

    def part(keep: bool) -> CocoContent:
        return CocoContent(
            source.image_dir,
            {
                **source.content,
                "images": [image for image in images if (image["id"] in held_ids) is keep],
                # Annotations of unknown images stay in the training part, where `load_coco` finds them.
                "annotations": [
                    entry
                    for entry in source.content["annotations"]
                    if (type(entry.get("image_id")) is int and entry["image_id"] in held_ids) is keep
                ],
            },
        )

    return part(False), part(True)


def write_content(source: CocoContent, path: Path) -> CocoContent:
    """Write the annotation file unless it exists already as `ann_file`. The same content gives the same bytes."""
    if source.ann_file is not None:
        return source
    write_atomically(path, json.dumps(source.content).encode())
    return CocoContent(source.image_dir, source.content, path)
