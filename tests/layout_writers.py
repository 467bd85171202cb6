"""Write a COCO data set in other layouts, independently of the readers of the package."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def first_images(content: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the content of a COCO file with its first images, and only objects that every layout can hold.

    These are single polygons: YOLO has one polygon per object, and neither layout has crowds. The box is that of the
    polygon, because YOLO does not store both.
    """
    images = sorted(content["images"], key=lambda image: image["id"])[:count]
    kept = {image["id"] for image in images}
    annotations = [
        {**entry, "bbox": polygon_box(entry["segmentation"][0])}
        for entry in content["annotations"]
        if entry["image_id"] in kept and isinstance(entry["segmentation"], list) and len(entry["segmentation"]) == 1
    ]
    return {**content, "images": images, "annotations": annotations}


def polygon_box(numbers: list[float]) -> list[float]:
    x, y = min(numbers[::2]), min(numbers[1::2])
    return [x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y]


def annotations_by_image(content: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        found[entry["image_id"]].append(entry)
    return found


def write_coco(root: Path, split: str, content: dict[str, Any], image_dir: Path) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    copy_images(root / split, content, image_dir)


def copy_images(target: Path, content: dict[str, Any], image_dir: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        shutil.copy(image_dir / image["file_name"], target)


def write_yolo(root: Path, split: str, content: dict[str, Any], image_dir: Path, *, polygons: bool) -> None:
    """Write `images/SPLIT`, `labels/SPLIT` and `data.yaml`; 9 decimals."""
    copy_images(root / "images" / split, content, image_dir)
    (root / "labels" / split).mkdir(parents=True)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    entries = annotations_by_image(content)
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for entry in entries[image["id"]]:
            if polygons:
                numbers = entry["segmentation"][0]
                values = [x / width if index % 2 == 0 else x / height for index, x in enumerate(numbers)]
            else:
                x, y, w, h = entry["bbox"]
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            lines.append(" ".join([str(label_of[entry["category_id"]]), *(f"{value:.9f}" for value in values)]))
        path = root / "labels" / split / f"{Path(image['file_name']).stem}.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
    splits = sorted(path.name for path in (root / "images").iterdir())
    names = "".join(f"  {label}: {category['name']}\n" for label, category in enumerate(categories))
    (root / "data.yaml").write_text("".join(f"{name}: images/{name}\n" for name in splits) + f"names:\n{names}")


def write_pascal_voc(root: Path, split: str, content: dict[str, Any], image_dir: Path) -> None:
    """Write `JPEGImages`, `Annotations` and `ImageSets/Main/SPLIT.txt`.

    The first pixel of an image is 1, and the last pixel of a box belongs to it.
    """
    copy_images(root / "JPEGImages", content, image_dir)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    entries = annotations_by_image(content)
    for image in content["images"]:
        objects = ""
        for entry in entries[image["id"]]:
            x, y, w, h = entry["bbox"]
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
            name = escape(name_of[entry["category_id"]])
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>\n"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        stem = Path(image["file_name"]).stem
        text = f"<annotation>\n<filename>{image['file_name']}</filename>\n{size}\n{objects}</annotation>\n"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    names = "".join(f"{Path(image['file_name']).stem}\n" for image in content["images"])
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)


def write_roboflow(root: Path, split: str, content: dict[str, Any], image_dir: Path) -> None:
    """Write `SPLIT/_annotations.coco.json` beside the images, with Roboflow's category 0, which has no annotations."""
    copy_images(root / split, content, image_dir)
    dummy = {"id": 0, "name": "things", "supercategory": "none"}
    categories = [dummy, *({**category, "supercategory": "things"} for category in content["categories"])]
    path = root / split / "_annotations.coco.json"
    path.write_text(json.dumps({**content, "categories": categories}))
