"""Tiny records of evaluations, with images, for the tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from twins_dense.evaluation.record import About, RecordWriter

NAMES = ("cat", "dog", "bird")
# Text that must appear on a page as it is: HTML, quotes, an emoji, template syntax, and 300 characters.
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "\"quotes' & </script><script>alert(2)</script> 🦜 {{ 7 * 7 }}",
    "long" * 75,
)
HEIGHT, WIDTH = 48, 64
_COLORS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115)], np.uint8)


def write_image(path: Path, seed: int, *, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Write a small image of smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def detection_record(folder: Path, *, classes: Sequence[str] = NAMES, flawless: bool = False) -> Path:
    """Write the finished record of a detector with masks on eight images, each but the first with one planted error.

    0: two objects, both found. 1: the second object is missed. 2: the second object is found as the next class.
    3: the second object is found 8 pixels too far to the right (IoU 0.43). 4: the first object is found twice.
    5: something is found where nothing is. 6: no object, and nothing is found. 7: two objects are found, beside a
    crowd region. The names of the files contain HTML if the classes are given.

    Args:
        folder: Folder of the evaluation. The images are written beside it, so that evaluations can be compared.
        classes: Names of three classes; object k of image i belongs to the class (i + k) % 3.
        flawless: Whether to plant no error.
    """
    category_ids = [1, 3, 7]
    about = _about("detection", classes, category_ids=category_ids, iou_types=["bbox", "segm"], max_dets=100)
    mark = "" if classes is NAMES else " <u>'&"
    boxes = ((4.0, 6.0, 20.0, 16.0), (32.0, 20.0, 20.0, 16.0))  # x, y, width, height
    with RecordWriter(folder, about) as writer:
        for i in range(about.num_images):
            objects = [] if i == 6 else [(boxes[k], category_ids[(i + k) % 3]) for k in range(2)]
            annotations = [_annotation(100 * i + k, i, box, category) for k, (box, category) in enumerate(objects)]
            found = [(box, category, 0.9 - 0.1 * k) for k, (box, category) in enumerate(objects)]
            if flawless:
                pass
            elif i == 1:
                del found[1]
            elif i == 2:
                found[1] = (boxes[1], category_ids[(i + 2) % 3], 0.8)
            elif i == 3:
                found[1] = ((40.0, 20.0, 20.0, 16.0), found[1][1], 0.8)
            elif i == 4:
                found.append((boxes[0], found[0][1], 0.85))
            elif i == 5:
                found.append(((2.0, 30.0, 12.0, 12.0), category_ids[0], 0.85))
            if i == 7:
                annotations.append({**_annotation(100 * i + 2, i, (0.0, 0.0, 64.0, 4.0), 1), "iscrowd": 1})
            entry = {
                "index": i,
                "file": str(write_image(folder.parent / "images" / f"photo {i}{mark}.jpg", i)),
                "image": {"id": i + 1, "height": HEIGHT, "width": WIDTH},
                "annotations": annotations,
                "detections": [_detection(i, *item) for item in found],
            }
            writer.add(entry)
    return folder


def segmentation_record(folder: Path, *, classes: Sequence[str] = NAMES, flawless: bool = False) -> Path:
    """Write the finished record of a segmentor on six images.

    The image has three vertical stripes of the classes 0, 1, 2, which are 24, 20 and 20 pixels wide. A row of unknown
    pixels is at the bottom. The model shifts the border between the classes 0 and 1 by i pixels to the left in image i.

    Args:
        folder: Folder of the evaluation. Images and true label maps are written beside it.
        classes: Names of three classes.
        flawless: Whether the model predicts the truth.
    """
    settings = {"palette": _COLORS.tolist(), "first_value": 1, "ignore_index": 255}
    about = _about("segmentation", classes, num_images=6, **settings)
    maps = folder / "record" / "maps"
    maps.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder, about) as writer:
        for i in range(about.num_images):
            truth = np.digitize(np.arange(WIDTH), (24, 44)).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
            prediction = truth.copy()
            if not flawless:
                prediction[:, 24 - i : 24] = 1
            confidence = np.full((HEIGHT // 2, WIDTH // 2), 230, np.uint8)
            confidence[:, 10:14] = 130
            on_disk = truth + 1
            on_disk[-1] = 0  # unknown
            labels = folder.parent / "labels" / f"street {i}.png"
            labels.parent.mkdir(exist_ok=True)
            Image.fromarray(on_disk).save(labels)
            Image.fromarray(prediction).save(maps / f"{i}.png")
            Image.fromarray(confidence).save(maps / f"{i}-confidence.png")
            entry = {
                "index": i,
                "file": str(write_image(folder.parent / "images" / f"street {i}.jpg", i)),
                "height": HEIGHT,
                "width": WIDTH,
                "labels": str(labels),
                "prediction": f"maps/{i}.png",
                "confidence": f"maps/{i}-confidence.png",
            }
            writer.add(entry)
    return folder


def classification_record(folder: Path, *, classes: Sequence[str] = NAMES, flawless: bool = False) -> Path:
    """Write the finished record of a classifier on nine images of three classes, three of each.

    The last image of each class is taken for the next class, with a probability of 0.6.

    Args:
        folder: Folder of the evaluation. The images are written beside it.
        classes: Names of three classes.
        flawless: Whether every image is classified correctly.
    """
    about = _about("classification", classes, num_images=9, wnids=["n01", "n02", "n03"], protocol="224 of 256")
    with RecordWriter(folder, about) as writer:
        for i in range(about.num_images):
            label, wrong = i // 3, i % 3 == 2 and not flawless
            top = [(label + 1) % 3, label, (label + 2) % 3] if wrong else [label, (label + 1) % 3, (label + 2) % 3]
            probabilities = [0.6, 0.3, 0.1] if wrong else [0.8, 0.15, 0.05]
            entry = {
                "index": i,
                "file": str(write_image(folder.parent / "images" / f"class {i}.jpg", i)),
                "label": label,
                "top": top,
                "probabilities": probabilities,
                "loss": -float(np.log(probabilities[top.index(label)])),
            }
            writer.add(entry)
    return folder


def _about(task: Any, classes: Sequence[str], *, num_images: int = 8, **settings: Any) -> About:
    return About(
        task=task,
        classes=list(classes),
        num_images=num_images,
        identity=f"tiny {task}",
        checkpoint="tiny.pth",
        dataset="tiny images",
        settings=settings,
        engine="" if task == "classification" else "mmengine",
        command="twins-dense eval tiny.pth",
        started="2026-03-01 14:05:00",
        versions={"torch": "2.0"},
        device="CPU",
    )


def _annotation(id: int, image: int, box: Sequence[float], category: int) -> dict[str, Any]:
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    common = {"id": id + 1, "image_id": image + 1, "category_id": category, "bbox": list(box)}
    return {**common, "area": width * height, "iscrowd": 0, "segmentation": [polygon]}


def _detection(image: int, box: Sequence[float], category: int, score: float) -> dict[str, Any]:
    x, y, width, height = map(int, box)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = mask_utils.encode(mask)
    segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    common = {"image_id": image + 1, "category_id": category, "bbox": list(box)}
    return {**common, "score": score, "segmentation": segmentation}
