"""Statistics of known data, and the settings that they suggest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS

from twins_dense.data.check import describe_contents
from twins_dense.data.layouts import DataFolder, Split, recognise
from twins_dense.data.statistics import (
    ObjectStatistics,
    class_table,
    describe_objects,
    describe_sizes,
    measure_objects,
    suggest,
    suggest_segmentation,
)
from twins_dense.errors import TwinsError


def folder(root: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("cat", "dog")) -> DataFolder:
    """Return data with two images of 200x100 and 100x300 pixels, with the ids 7 and 3."""
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 3, "file_name": "b.jpg", "width": 100, "height": 300},
        ],
        "annotations": annotations,
        "categories": [{"id": 2 * index + 1, "name": name} for index, name in enumerate(names)],
    }
    ann_file = root / "instances.json"
    ann_file.write_text(json.dumps(content))
    return DataFolder(root, "COCO", "detection", names, {"train": Split(root, 2, ann_file)})


def annotation(image_id: Any = 7, category_id: Any = 1, bbox: Any = (0, 0, 4, 9), **changes: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **changes}


def statistics(
    *,
    num_images: int = 200,
    image_size: tuple[int, int] = (640, 480),
    object_size: float = 60,
    small_size: float | None = None,
    most: int = 20,
) -> ObjectStatistics:
    """Return statistics of images with 5 objects each; one image has `most`, and a fifth of the objects is small."""
    counts = np.full(num_images, 5)
    counts[0] = most
    box_images = np.repeat(np.arange(num_images), counts)
    boxes = np.full((len(box_images), 2), float(object_size))
    boxes[::5] = small_size or object_size
    return ObjectStatistics(
        classes=("thing",),
        class_counts=np.array([len(boxes)]),
        class_images=np.array([num_images]),
        objects_per_image=counts,
        image_sizes=np.tile(image_size, (num_images, 1)),
        box_sizes=boxes,
        box_images=box_images,
    )


class TestMeasure:
    def test_known_answers(self, tmp_path: Path) -> None:
        objects = [
            annotation(),
            annotation(bbox=[1, 2, 16, 25]),
            annotation(3, 3, bbox=[1, 2, 10, 40]),
            annotation(3, 3, iscrowd=1),
        ]
        found = measure_objects(folder(tmp_path, objects))
        assert found.class_counts.tolist() == [2, 1] and found.class_images.tolist() == [1, 1]
        assert found.objects_per_image.tolist() == [2, 1] and found.num_images == 2
        assert found.image_sizes.tolist() == [[200, 100], [100, 300]] and found.short_side == 100
        # The first image is enlarged 2 times; the long side limits the second one to 1.5 times.
        np.testing.assert_allclose(found.object_sizes(200, 450), [2 * 6, 2 * 20, 1.5 * 20])

    @pytest.mark.parametrize(
        "bad",
        [
            annotation(bbox=None),
            annotation(bbox=[1, 2, 3]),
            annotation(bbox=[1, 2, "3", 4]),
            annotation(bbox=[1, 2, 0, 4]),
            annotation(bbox=[1, 2, -3, 4]),
            annotation(bbox=[1, 2, float("nan"), 4]),
            annotation(image_id=[7]),
            annotation(image_id=8),
            annotation(category_id="1"),
            annotation(category_id=2),
        ],
    )
    def test_bad_annotations_are_not_counted(self, tmp_path: Path, bad: dict[str, Any]) -> None:
        assert measure_objects(folder(tmp_path, [annotation(), bad])).class_counts.tolist() == [1, 0]
        with pytest.raises(TwinsError, match="has no objects"):
            measure_objects(folder(tmp_path, [bad]))

    def test_validation_images_may_have_no_objects(self, tmp_path: Path) -> None:
        (tmp_path / "val").mkdir()
        data = folder(tmp_path, [annotation()])
        empty = folder(tmp_path / "val", []).splits["train"]
        data = dataclasses.replace(data, splits={**data.splits, "val": empty})
        assert measure_objects(data, "val").objects_per_image.tolist() == [0, 0]
        lines, suggestion = describe_contents(data)
        assert lines[-1].startswith("warning: the validation images have no objects")
        assert suggestion.max_dets == 100


class TestDescribe:
    def test_lines(self, tmp_path: Path) -> None:
        objects = [annotation(), *[annotation(3, bbox=[0, 0, 10, 40])] * 11]
        assert list(describe_objects(measure_objects(folder(tmp_path, objects)), size=100, max_size=300)) == [
            "image sizes: from 200x100 to 100x300 pixels; the median short side is 100",
            "class  objects  images",
            "cat         12       2",
            "dog          0       0",
            "warning: 1 class has no objects to train on: dog",
            "objects per image: median 6, 99 % at most 11, largest 11",
            "object size (square root of the box area) in images of 100 pixels: 5 % below 14, median 20, 5 % above 20 "
            "pixels",
            "height / width of boxes: 5 % below 3.21, median 4.00, 5 % above 4.00",
        ]

    def test_warnings(self, tmp_path: Path) -> None:
        objects = [annotation(), *[annotation(category_id=3)] * 10]
        lines = list(describe_objects(measure_objects(folder(tmp_path, objects, ("Cat", "cat ", "dog", "cow")))))
        assert [line for line in lines if line.startswith("warning")] == [
            "warning: several classes have the same name: cat",
            "warning: 2 classes have no objects to train on: dog, cow",
            "warning: 1 class has fewer than 10 objects: Cat",
        ]
        assert "objects per image: median 5.5, 99 % at most 11, largest 11; 1 of 2 images have none" in lines

    def test_long_tables_are_shortened(self) -> None:
        lines = list(class_table([f"class {i}" for i in range(50)], {"objects": list(range(1000, 1050))}))
        assert len(lines) == 14
        assert lines[0].split() == ["class", "objects"] and lines[1].split() == ["class", "49", "1,049"]
        assert lines[7] == "… 38 more" and lines[-1].split() == ["class", "0", "1,000"]

    def test_one_size(self) -> None:
        assert describe_sizes(np.array([[30, 20], [30, 20]])) == "image size: 30x20 pixels"


class TestSuggest:
    def test_data_like_coco_gets_the_published_settings(self) -> None:
        found = suggest(statistics(num_images=6000, object_size=50, small_size=14, most=93))
        assert (found.recipe, found.epochs, found.batch) == ("published", None, None)
        assert (found.size, found.max_size, found.max_dets) == (800, 1333, 100)
        assert found.anchor_sizes == (32, 64, 128, 256, 512)

    def test_nuclei(self) -> None:
        found = suggest(
            statistics(num_images=39, image_size=(256, 256), object_size=15.5, small_size=8.4, most=125),
            statistics(num_images=10, most=151),
        )
        assert (found.recipe, found.batch, found.epochs) == ("small-data", 2, 26)
        assert (found.size, found.max_size, found.max_dets) == (320, 533, 190)
        assert found.anchor_sizes == (8, 16, 32, 64, 128)

    @pytest.mark.parametrize(
        ("image_size", "object_size", "size"),
        [
            ((128, 128), 40, 128),  # large objects: not enlarged
            ((128, 128), 16, 160),  # 20 pixels
            ((128, 128), 3, 256),  # at most twice
            ((399, 640), 50, 384),
            ((400, 640), 50, 800),
            ((4000, 3000), 300, 800),
            ((4000, 3000), 45, 1088),  # 12 pixels at 800; 16 at 1067
            ((4000, 3000), 10, 1216),
            ((900, 1000), 10, 928),  # not enlarged
        ],
    )
    def test_size(self, image_size: tuple[int, int], object_size: float, size: int) -> None:
        assert suggest(statistics(image_size=image_size, object_size=object_size)).size == size

    @pytest.mark.parametrize(("small", "smallest"), [(13, 32), (12, 16), (6.5, 16), (6, 8), (1, 8)])
    def test_anchor_sizes(self, small: float, smallest: float) -> None:
        """At 800 pixels, objects are 5/3 times as large."""
        found = suggest(statistics(object_size=60, small_size=small)).anchor_sizes
        assert found == tuple(smallest * 2**level for level in range(5))

    @pytest.mark.parametrize(("large", "smallest"), [(230, 16), (231, 32)])
    def test_large_objects_keep_large_anchors(self, large: float, smallest: float) -> None:
        """At 800 pixels, 230 pixels become 383, and 1.5 times 256 is 384."""
        assert (suggest(statistics(object_size=large, small_size=10)).anchor_sizes or ())[0] == smallest

    @pytest.mark.parametrize(("most", "max_dets"), [(20, 100), (100, 100), (101, 130), (375, 450), (1000, 1200)])
    def test_max_dets(self, most: int, max_dets: int) -> None:
        assert suggest(statistics(most=most)).max_dets == max_dets
        assert suggest(statistics(), statistics(most=most)).max_dets == max_dets

    @pytest.mark.parametrize(
        ("num_images", "batch", "epochs"), [(2, 2, 500), (50, 2, 20), (99, 2, 12), (100, 4, 20), (4999, 4, 12)]
    )
    def test_schedule(self, num_images: int, batch: int, epochs: int) -> None:
        found = suggest(statistics(num_images=num_images))
        assert (found.recipe, found.batch, found.epochs) == ("small-data", batch, epochs)
        assert suggest_segmentation(num_images, np.array([[640, 480]])).epochs == epochs

    @pytest.mark.parametrize(("side", "size"), [(20, 32), (360, 352), (511, 480), (512, 512), (2000, 512)])
    def test_crops(self, side: int, size: int) -> None:
        assert suggest_segmentation(10, np.array([[side, 3000]])).size == size

    def test_every_setting_has_a_reason(self) -> None:
        assert {"recipe", "epochs", "batch", "size", "max_dets", "anchor_sizes"} == suggest(statistics()).reasons.keys()


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)
class TestPhotos:
    def test_coco(self, tmp_path: Path) -> None:
        lines, found = describe_contents(recognise(COCO_MINI, out=tmp_path))
        assert (found.size, found.max_dets, found.anchor_sizes) == (800, 100, (32, 64, 128, 256, 512))
        assert any(line.startswith("warning: 7 classes have no objects") for line in lines)

    def test_camvid(self, tmp_path: Path) -> None:
        lines, found = describe_contents(recognise(COCO_MINI.parent / "camvid_mini", out=tmp_path))
        assert found.size == 352 and found.anchor_sizes is None and found.max_dets is None
        assert lines[0] == "image size: 480x360 pixels" and lines[2].split() == ["road", "31.40", "60"]
        assert lines[-1] == "pixels without a class: 3.5 %"
