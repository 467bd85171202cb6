"""Draw a small data set in COCO format: circles, rectangles and triangles on a noisy background.

A small Mask R-CNN learns it from scratch in a few hundred iterations, which shows within minutes that training works.
"""

from __future__ import annotations

import colorsys
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from tqdm import tqdm

from ..errors import TwinsError

# The ids have a gap, as in COCO, so that code that confuses ids with class indices fails.
CATEGORIES = ({"id": 1, "name": "circle"}, {"id": 2, "name": "rectangle"}, {"id": 5, "name": "triangle"})
SPLITS = ("train2017", "val2017")
PARAMETER_FILE = "toy.json"

MAX_OBJECTS = 4
MIN_DIAMETER, MAX_DIAMETER = 1 / 8, 0.6  # of the circumscribed circle of a shape, as a fraction of the image size
MIN_VISIBLE = 0.6  # fraction of each shape that later shapes must leave visible
NUM_TRIES = 20  # attempts to place a shape before it is left out
OVERSAMPLING = 4  # shapes are drawn this many times larger and averaged, which smooths their edges
MIN_IMAGE_SIZE = 64  # in pixels; the smallest shapes are then 8 pixels wide


def make_toy_coco(
    out_dir: str | Path, *, num_train: int = 200, num_val: int = 50, image_size: int = 128, seed: int = 0
) -> Path:
    """Draw the data set, or reuse a complete one that was drawn with the same parameters.

    The layout is that of COCO: `annotations/instances_{train,val}2017.json`, `train2017/*.jpg`, `val2017/*.jpg`. The
    same parameters produce the same files. The folder appears only when it is complete, and nothing is overwritten.

    Args:
        out_dir: Folder of the data set.
        num_train: Number of training images. The class of the first object cycles, so 3 images show all classes.
        num_val: Number of validation images.
        image_size: Height and width of each image in pixels, 64 or more.
        seed: Seed of the random numbers, 0 or more.

    Returns:
        `out_dir` as a path.

    Raises:
        TwinsError: If a parameter is too small, or `out_dir` contains anything other than this complete data set.
    """
    parameters = {"num_train": num_train, "num_val": num_val, "image_size": image_size, "seed": seed}
    smallest = {"num_train": 1, "num_val": 1, "image_size": MIN_IMAGE_SIZE, "seed": 0}
    for name, value in parameters.items():
        if value < smallest[name]:
            raise TwinsError(f"{name}={value}: must be {smallest[name]} or more")
    out_dir = Path(out_dir)
    if out_dir.exists():
        _check_reusable(out_dir, parameters)
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # Draw in a sibling folder: renaming is atomic only within a file system.
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as scratch:
        build_dir = Path(scratch) / "toy"
        (build_dir / "annotations").mkdir(parents=True)
        first_ids = {"train2017": 1, "val2017": num_train + 1}
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(build_dir, split, range(first_ids[split], first_ids[split] + num_images), image_size, seed)
        _write_json(build_dir / PARAMETER_FILE, parameters)
        try:
            os.rename(build_dir, out_dir)
        except OSError:  # another process created the folder in the meantime
            _check_reusable(out_dir, parameters)
    return out_dir


def _check_reusable(out_dir: Path, parameters: dict[str, int]) -> None:
    """Raise `TwinsError` unless the folder contains the complete data set with these parameters."""
    try:
        found = json.loads((out_dir / PARAMETER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TwinsError(f"{out_dir}: exists and is not a toy data set; choose another folder") from None
    if found != parameters:
        raise TwinsError(f"{out_dir}: contains a toy data set with {found}, not {parameters}; choose another folder")
    for split, num_images in zip(SPLITS, (parameters["num_train"], parameters["num_val"]), strict=True):
        num_found = len(list((out_dir / split).glob("*.jpg")))
        if num_found != num_images or not _ann_file(out_dir, split).is_file():
            raise TwinsError(f"{out_dir}: {split} is incomplete; remove the folder or choose another")


def _ann_file(data_dir: Path, split: str) -> Path:
    return data_dir / "annotations" / f"instances_{split}.json"


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_split(data_dir: Path, split: str, image_ids: range, image_size: int, seed: int) -> None:
    """Write the images and the annotation file of one split."""
    (data_dir / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in tqdm(image_ids, desc=f"drawing {split}", unit=" images", disable=None):
        # One seed per image: its pixels do not depend on the number of images.
        rng = np.random.default_rng([seed, image_id])
        pixels, objects = _draw_image(rng, image_size, first_class=image_id % len(CATEGORIES))
        file_name = f"{image_id:012d}.jpg"
        # Keep the full colour resolution: chroma subsampling blurs the edges of small shapes.
        Image.fromarray(pixels).save(data_dir / split / file_name, quality=95, subsampling=0)
        images.append({"id": image_id, "file_name": file_name, "width": image_size, "height": image_size})
        for position, (class_index, mask) in enumerate(objects):
            annotations.append(_annotation(image_id * MAX_OBJECTS + position, image_id, class_index, mask))
    info = {"description": "Toy shapes in COCO format, drawn by twins_dense"}
    content = {"info": info, "licenses": [], "categories": list(CATEGORIES)}
    _write_json(_ann_file(data_dir, split), {**content, "images": images, "annotations": annotations})


def _annotation(annotation_id: int, image_id: int, class_index: int, mask: np.ndarray) -> dict[str, Any]:
    """Return the COCO entry of a visible mask, bool (H, W). Area and box are computed from the segmentation."""
    height, width = mask.shape
    segmentation = _segmentation(mask)
    if isinstance(segmentation, list):
        code = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    else:
        code = segmentation
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORIES[class_index]["id"],
        "segmentation": segmentation,
        "area": float(mask_utils.area(code)),
        "bbox": [float(value) for value in mask_utils.toBbox(code)],
        "iscrowd": 0,
    }


def _segmentation(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """Return a polygon for a mask in one part, or a compressed run-length encoding for several parts or holes.

    COCO's polygons run along the edges of the pixels, and OpenCV's contours through their centres. On a mask enlarged
    by `scale`, the difference is half an enlarged pixel, which is 1 / (2 * scale) of a pixel.
    """
    scale = 4
    enlarged = mask.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) == 1:
        # A tolerance of half a pixel turns staircases of pixels into straight sides.
        outline = cv2.approxPolyDP(contours[0], epsilon=0.5 * scale, closed=True)
        return [((outline.reshape(-1) + 0.5) / scale).tolist()]
    code = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def _draw_image(
    rng: np.random.Generator, image_size: int, first_class: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return an image, uint8 RGB (S, S, 3), and the class index and visible mask, bool (S, S), of each object."""
    canvas = _draw_background(rng, image_size)
    objects: list[tuple[int, np.ndarray]] = []
    whole_areas: list[int] = []
    num_objects = int(rng.integers(1, MAX_OBJECTS + 1))
    # Hues are far apart, so that overlapping shapes differ in colour.
    hues = (rng.random() + np.arange(num_objects) / num_objects) % 1
    for index in range(num_objects):
        class_index = first_class if index == 0 else int(rng.integers(len(CATEGORIES)))
        for _ in range(NUM_TRIES):
            coverage = _draw_shape(rng, image_size, class_index)
            mask = coverage > 0.5
            covered = [(other, visible & ~mask) for other, visible in objects]
            left = [(visible.sum(), area) for (_, visible), area in zip(covered, whole_areas, strict=True)]
            if all(visible_area >= MIN_VISIBLE * whole_area for visible_area, whole_area in left):
                canvas = _paint(rng, canvas, coverage, float(hues[index]))
                objects = [*covered, (class_index, mask)]
                whole_areas.append(int(mask.sum()))
                break
    grain = rng.normal(0, 0.025, canvas.shape)
    return (np.clip(canvas + grain, 0, 1) * 255).round().astype(np.uint8), objects


def _draw_background(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Return dark clouds of two muted colours, float (S, S, 3) in 0..1."""
    first, second = (
        np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.5), rng.uniform(0.12, 0.45))) for _ in range(2)
    )
    clouds = np.zeros((image_size, image_size))
    for cells, weight in ((3, 0.6), (9, 0.3), (27, 0.15)):
        noise = rng.random((cells, cells))
        clouds += weight * cv2.resize(noise, (image_size, image_size), interpolation=cv2.INTER_CUBIC)
    return first + (second - first) * np.clip(clouds, 0, 1)[..., None]


def _draw_shape(rng: np.random.Generator, image_size: int, class_index: int) -> np.ndarray:
    """Return the coverage of each pixel, float (S, S) in 0..1, by a shape of random size, position and angle."""
    # Uniform on a logarithmic scale: as many shapes have a diameter between 1/8 and 1/4 of the image size as
    # between 1/4 and 1/2.
    radius = image_size / 2 * np.exp(rng.uniform(np.log(MIN_DIAMETER), np.log(MAX_DIAMETER)))
    centre = rng.uniform(radius, image_size - radius, size=2)
    # Corners are angles on the circumscribed circle; `half` is the angle between a rectangle's long axis and a corner.
    half = np.arctan(rng.uniform(0.6, 1.0))
    corners = {
        "circle": np.linspace(0, 2 * np.pi, 64, endpoint=False),
        "rectangle": np.array([-half, half, np.pi - half, np.pi + half]),
        "triangle": np.array([0, 2, 4]) * np.pi / 3,
    }[str(CATEGORIES[class_index]["name"])]
    angles = corners + rng.uniform(0, 2 * np.pi)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    large = np.zeros((image_size * OVERSAMPLING, image_size * OVERSAMPLING), np.float32)
    cv2.fillPoly(large, [np.round(points * OVERSAMPLING).astype(np.int32)], 1.0)
    return cv2.resize(large, (image_size, image_size), interpolation=cv2.INTER_AREA).astype(float)


def _paint(rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray, hue: float) -> np.ndarray:
    """Paint a shape in a bright colour, with a soft shadow to the lower right, and return the new canvas."""
    image_size = len(canvas)
    distance = image_size / 64
    moved = cv2.warpAffine(coverage, np.array([[1, 0, distance], [0, 1, distance]]), (image_size, image_size))
    shadow = 0.5 * cv2.GaussianBlur(moved, (0, 0), sigmaX=1.5 * distance)
    colour = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.9), rng.uniform(0.85, 1.0)))
    # Light falls from the upper left and fades across the shape.
    ramp = np.add.outer(np.arange(image_size), np.arange(image_size))
    inside = ramp[coverage > 0.5]
    light = 1.08 - 0.25 * np.clip((ramp - inside.min()) / max(np.ptp(inside), 1), 0, 1)
    alpha = coverage[..., None]
    return canvas * (1 - shadow[..., None]) * (1 - alpha) + np.clip(colour * light[..., None], 0, 1) * alpha
