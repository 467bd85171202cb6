"""Measure the objects of a data set, describe them, and suggest settings that suit them.

Everything is computed from annotation files; no image is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import TwinsError
from .coco import CocoData, is_instance, read_annotation_file
from .coco_checks import box_problem, entries_by_id, is_flag
from .layouts import DataFolder

# The published detectors resize the short side to 800 pixels and the long side to at most 1333; segmentors crop.
PUBLISHED_SIZE, PUBLISHED_MAX_SIZE = 800, 1333
PUBLISHED_MAX_DETS = 100
PUBLISHED_CROP = 512
PUBLISHED_ANCHORS: tuple[int, ...] = (32, 64, 128, 256, 512)

_ORDINARY_SIDE = 400  # pixels; COCO's images have a median short side of 430 to 480
_LARGEST_SIZE = 1200
_SIZE_STEP = 32  # stride of the coarsest level of the backbone
_FEW_CELLS, _SMALL_CELLS = 4, 5  # of the finest level, whose stride is 4 pixels
_FINEST_STRIDE = 4
_SMALLEST_ANCHOR = 8
_ANCHOR_RATIO = 1.5  # between the sizes of an anchor and an object that it can still find
_SMALL_DATA = 5000  # training images
_TINY_DATA = 100  # training images
_MIN_EPOCHS, _MIN_ITERATIONS = 12, 500
_FEW_OBJECTS = 10
_NUM_LISTED = 12


@dataclass(frozen=True)
class ObjectStatistics:
    """Measurements of the objects of a split. Crowd regions are not counted.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        class_counts: Number of objects per class, int64 (K,).
        class_images: Number of images with at least one object of each class, int64 (K,).
        objects_per_image: Number of objects per image, int64 (number of images,).
        image_sizes: Width and height of each image in pixels, int64 (number of images, 2).
        box_sizes: Width and height of each box in pixels of the stored image, float64 (number of objects, 2).
        box_images: Index of the image of each box, int64 (number of objects,).
    """

    classes: tuple[str, ...]
    class_counts: np.ndarray
    class_images: np.ndarray
    objects_per_image: np.ndarray
    image_sizes: np.ndarray
    box_sizes: np.ndarray
    box_images: np.ndarray

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.objects_per_image)

    @property
    def short_side(self) -> float:
        """Median of the short sides of the images in pixels."""
        return float(np.median(self.image_sizes.min(axis=1)))

    def object_sizes(self, size: int, max_size: int) -> np.ndarray:
        """Return the square root of the area of each box, in pixels of images resized like a detector's input.

        Args:
            size: Short side of the resized images.
            max_size: Limit of their long side.
        """
        sides = np.sort(self.image_sizes, axis=1).clip(min=1)  # a broken file may say 0
        scales = np.minimum(size / sides[:, 0], max_size / sides[:, 1])
        return np.sqrt(self.box_sizes.prod(axis=1)) * scales[self.box_images]


def measure_objects(data: DataFolder, split: str = "train") -> ObjectStatistics:
    """Measure the objects of a split. Annotations that `load_coco` would refuse are not counted.

    Raises:
        TwinsError: If the annotation file cannot be used, or the split "train" has no object.
    """
    ann_file = data.splits[split].ann_file
    if ann_file is None:
        raise TwinsError(f"{data.root}: is data for {data.task}, which has no objects")
    content = read_annotation_file(ann_file)
    images = entries_by_id(ann_file, content, "images", {"file_name": str, "width": int, "height": int})
    categories = sorted(entries_by_id(ann_file, content, "categories", {"name": str}))
    index_of = {image_id: index for index, image_id in enumerate(images)}
    label_of = {category_id: label for label, category_id in enumerate(categories)}
    image_indices, labels, boxes = [], [], []
    for entry in content["annotations"]:
        box = entry.get("bbox")
        index, label = (
            known.get(entry[key]) if type(entry.get(key)) is int else None
            for key, known in (("image_id", index_of), ("category_id", label_of))
        )
        if index is None or label is None or not is_flag(entry.get("iscrowd", 0)):
            continue
        image = images[entry["image_id"]]
        if is_instance(entry) and box_problem(box, image["width"], image["height"]) is None:
            image_indices.append(index)
            labels.append(label)
            boxes.append(box[2:])
    if not boxes and split == "train":
        raise TwinsError(f"{ann_file}: has no objects; check its annotations")
    sizes = [(image["width"], image["height"]) for image in images.values()]
    return _statistics(data.classes, sizes, image_indices, labels, boxes)


def measure_checked(data: CocoData) -> ObjectStatistics:
    """Measure the objects of a checked data set, which may have none."""
    label_of = {category_id: label for label, category_id in enumerate(data.category_ids)}
    sizes = [(image.width, image.height) for image in data.images]
    indices, objects = [], []
    for index, image in enumerate(data.images):
        for annotation in filter(is_instance, image.annotations):
            indices.append(index)
            objects.append(annotation)
    labels = [label_of[annotation["category_id"]] for annotation in objects]
    return _statistics(data.class_names, sizes, indices, labels, [annotation["bbox"][2:] for annotation in objects])


def _statistics(
    classes: tuple[str, ...],
    image_sizes: Sequence[tuple[int, int]],
    image_indices: Sequence[int],
    labels: Sequence[int],
    box_sizes: Sequence[Sequence[float]],
) -> ObjectStatistics:
    pairs = np.unique(np.array([image_indices, labels], dtype=np.int64), axis=1)
    return ObjectStatistics(
        classes=classes,
        class_counts=np.bincount(np.array(labels, dtype=np.int64), minlength=len(classes)),
        class_images=np.bincount(pairs[1], minlength=len(classes)),
        objects_per_image=np.bincount(np.array(image_indices, dtype=np.int64), minlength=len(image_sizes)),
        image_sizes=np.array(image_sizes),
        box_sizes=np.array(box_sizes, dtype=np.float64).reshape(-1, 2),
        box_images=np.array(image_indices, dtype=np.int64),
    )


def describe_objects(
    statistics: ObjectStatistics, *, size: int = PUBLISHED_SIZE, max_size: int = PUBLISHED_MAX_SIZE
) -> Iterator[str]:
    """Yield lines that describe the objects of a split at a training size: classes, numbers, sizes and shapes."""
    yield describe_sizes(statistics.image_sizes)
    yield from class_table(
        statistics.classes,
        {"objects": statistics.class_counts.tolist(), "images": statistics.class_images.tolist()},
    )
    yield from name_warnings(statistics.classes)
    yield from _count_warnings(statistics)
    counts = statistics.objects_per_image
    empty = int((counts == 0).sum())
    yield (
        f"objects per image: median {np.median(counts):g}, 99 % at most {np.percentile(counts, 99):.0f}, "
        f"largest {counts.max()}" + (f"; {empty:,} of {len(counts):,} images have none" if empty else "")
    )
    low, middle, high = np.percentile(statistics.object_sizes(size, max_size), [5, 50, 95])
    yield (
        f"object size (square root of the box area) in images of {size} pixels: 5 % below {low:.0f}, "
        f"median {middle:.0f}, 5 % above {high:.0f} pixels"
    )
    low, middle, high = np.percentile(statistics.box_sizes[:, 1] / statistics.box_sizes[:, 0], [5, 50, 95])
    yield f"height / width of boxes: 5 % below {low:.2f}, median {middle:.2f}, 5 % above {high:.2f}"


def _count_warnings(statistics: ObjectStatistics) -> Iterator[str]:
    counts = dict(enumerate(statistics.class_counts.tolist()))
    unused = [statistics.classes[label] for label, count in counts.items() if count == 0]
    if unused:
        number = "1 class has" if len(unused) == 1 else f"{len(unused)} classes have"
        yield f"warning: {number} no objects to train on: {shorten(unused)}"
    rare = [statistics.classes[label] for label, count in counts.items() if 0 < count < _FEW_OBJECTS]
    if rare:
        number = "1 class has" if len(rare) == 1 else f"{len(rare)} classes have"
        yield f"warning: {number} fewer than {_FEW_OBJECTS} objects: {shorten(rare)}"


def name_warnings(classes: Sequence[str]) -> Iterator[str]:
    """Yield a warning if several classes have the same name, apart from capitals and spaces."""
    names = Counter(name.strip().lower() for name in classes)
    equal = sorted(name for name, count in names.items() if count > 1)
    if equal:
        yield f"warning: several classes have the same name: {shorten(equal)}"


def describe_sizes(sizes: np.ndarray) -> str:
    """Return a line about the sizes of images, given their widths and heights (N, 2) in pixels."""
    order = np.lexsort((sizes[:, 1], sizes.prod(axis=1)))
    small, large = (f"{width}x{height}" for width, height in sizes[order[[0, -1]]])
    if (sizes == sizes[0]).all():
        return f"image size: {small} pixels"
    side = np.median(sizes.min(axis=1))
    return f"image sizes: from {small} to {large} pixels; the median short side is {side:.0f}"


def class_table(classes: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Yield a table with one line per class; of many classes, only those with the most and the fewest entries.

    Args:
        classes: Names of the classes.
        columns: Values of each column; the first column, of numbers, sorts the lines in descending order.
    """
    first = next(iter(columns.values()))
    order = sorted(range(len(classes)), key=lambda label: (-first[label], label))
    rows = [("class", *columns)]
    rows += [(classes[label], *(_number(values[label]) for values in columns.values())) for label in order]
    if len(order) > _NUM_LISTED:
        half = _NUM_LISTED // 2
        rows[half + 1 : -half] = [(f"… {len(order) - 2 * half} more", *("" for _ in columns))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def shorten(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return ", ".join(names[:_NUM_LISTED]) + (", …" if len(names) > _NUM_LISTED else "")


@dataclass(frozen=True)
class Suggestion:
    """Settings that suit a data set. `None` keeps the setting of the config.

    Attributes:
        recipe: "small-data" or "published".
        epochs: Number of passes over the training images.
        batch: Number of images per iteration.
        size: Short side of a detector's resized images, or side of a segmentor's crops, in pixels.
        reasons: For each setting, a sentence that says why.
        max_size: For detectors, the limit of the long side of the resized images in pixels.
        max_dets: For detectors, the largest number of detections per image.
        anchor_sizes: For detectors, one anchor size per level, from fine to coarse, in pixels of the resized image.
    """

    recipe: Literal["published", "small-data"]
    epochs: int | None
    batch: int | None
    size: int
    reasons: Mapping[str, str]
    max_size: int | None = None
    max_dets: int | None = None
    anchor_sizes: tuple[int, ...] | None = None


def suggest(train: ObjectStatistics, *others: ObjectStatistics, size: int | None = None) -> Suggestion:
    """Suggest settings for a detector from its training objects. `others` are splits that it is evaluated on.

    If `size` is given, it is kept, and the other settings suit it.

    The rules, which give the published settings for data like COCO:

    * `size`: 800 for images with a short side of 400 pixels or more. Smaller images are enlarged, at most twice, until
      the median object covers about 5 × 5 cells of the finest level (stride 4). If the median object covers less than
      4 × 4 cells at 800, the size grows up to 1200 or the size of the images.
    * `anchor_sizes`: the published sizes, halved until the smallest anchor is at most 1.5 times the 10th percentile of
      the object sizes, as long as the largest anchor is at least 2/3 of their 95th percentile.
    * `max_dets`: 100 if no image has more objects; otherwise 1.2 times the largest number, rounded up to tens.
    * `recipe`: "small-data" below 5,000 training images.
    * `epochs` and `batch` for small data: 2 images per iteration below 100 training images and 4 otherwise; 12 epochs,
      or as many as 500 iterations need.
    """
    reasons: dict[str, str] = {}
    size = size or _suggest_size(train, reasons)
    max_size = round(size * PUBLISHED_MAX_SIZE / PUBLISHED_SIZE)  # the published proportion
    anchor_sizes = _suggest_anchors(train, size, max_size, reasons)
    most = max(int(statistics.objects_per_image.max()) for statistics in (train, *others))
    max_dets = PUBLISHED_MAX_DETS if most <= PUBLISHED_MAX_DETS else math.ceil(most * 1.2 / 10) * 10
    reasons["max_dets"] = f"One image has {most} objects; the published limit is {PUBLISHED_MAX_DETS} detections."
    recipe, epochs, batch = _suggest_schedule(train.num_images, reasons)
    return Suggestion(recipe, epochs, batch, size, reasons, max_size, max_dets, anchor_sizes)


def suggest_segmentation(num_images: int, image_sizes: np.ndarray) -> Suggestion:
    """Suggest settings for a segmentor.

    The rules for `recipe`, `epochs` and `batch` are those of `suggest`. `size` is the published 512, or the largest
    multiple of 32 that fits into the short side of the median image.

    Args:
        num_images: Number of training images.
        image_sizes: Width and height of training images, or a sample of them, in pixels, int64 (N, 2).
    """
    reasons: dict[str, str] = {}
    recipe, epochs, batch = _suggest_schedule(num_images, reasons)
    side = int(np.median(image_sizes.min(axis=1)))
    size = min(PUBLISHED_CROP, max(side // _SIZE_STEP, 1) * _SIZE_STEP)
    reasons["size"] = f"The median image has a short side of {side} pixels; the published crops have {PUBLISHED_CROP}."
    return Suggestion(recipe, epochs, batch, size, reasons)


def _suggest_schedule(
    num_images: int, reasons: dict[str, str]
) -> tuple[Literal["published", "small-data"], int | None, int | None]:
    """Return the recipe, the number of epochs and the batch size for this number of training images."""
    reasons["recipe"] = f"There are {num_images:,} training images; {_SMALL_DATA:,} or more count as large."
    if num_images >= _SMALL_DATA:
        return "published", None, None
    batch = 2 if num_images < _TINY_DATA else 4
    epochs = max(_MIN_EPOCHS, math.ceil(_MIN_ITERATIONS * batch / num_images))
    iterations = epochs * math.ceil(num_images / batch)
    reasons["batch"] = "Small batches give more iterations per epoch."
    reasons["epochs"] = f"This makes {iterations:,} iterations; training needs at least about {_MIN_ITERATIONS}."
    return "small-data", epochs, batch


def _suggest_size(train: ObjectStatistics, reasons: dict[str, str]) -> int:
    side = train.short_side
    median = float(np.median(np.sqrt(train.box_sizes.prod(axis=1))))
    images = f"the median image has a short side of {side:.0f} pixels"
    if side < _ORDINARY_SIDE:
        scale = min(max(_SMALL_CELLS * _FINEST_STRIDE / median, 1), 2)
        size = max(int(side * scale) // _SIZE_STEP, 1) * _SIZE_STEP
        reasons["size"] = f"The median object measures {median:.0f} pixels, and {images}."
        return size
    at_published = float(np.median(train.object_sizes(PUBLISHED_SIZE, PUBLISHED_MAX_SIZE)))
    wanted = _FEW_CELLS * _FINEST_STRIDE
    if at_published >= wanted or side <= PUBLISHED_SIZE:
        reasons["size"] = f"This is the published size: at it, the median object measures {at_published:.0f} pixels."
        return PUBLISHED_SIZE
    larger = min(PUBLISHED_SIZE * wanted / at_published, side, _LARGEST_SIZE)
    tiles = " Cut the images into tiles if objects are still too small." if larger == _LARGEST_SIZE else ""
    reasons["size"] = f"At 800 pixels the median object would measure {at_published:.0f} pixels; {images}.{tiles}"
    return math.ceil(larger / _SIZE_STEP) * _SIZE_STEP


def _suggest_anchors(train: ObjectStatistics, size: int, max_size: int, reasons: dict[str, str]) -> tuple[int, ...]:
    small, large = np.percentile(train.object_sizes(size, max_size), [10, 95])
    anchors = PUBLISHED_ANCHORS
    while anchors[0] > max(_ANCHOR_RATIO * small, _SMALLEST_ANCHOR) and large <= _ANCHOR_RATIO * anchors[-1] / 2:
        anchors = tuple(anchor // 2 for anchor in anchors)
    reasons["anchor_sizes"] = (
        f"In images of {size} pixels, 10 % of the objects measure less than {small:.0f} pixels and 5 % more than "
        f"{large:.0f}."
    )
    return anchors
