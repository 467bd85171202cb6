"""Planted mistakes in annotations are found, each once; ordinary annotations are not suspicious."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS

from twins_dense.data.coco import CocoData, CocoImage, load_coco
from twins_dense.data.suspects import KINDS, find_suspects

Box = tuple[float, float, float, float]


def data(*images: list[tuple[int, Box]], crowd: bool = False) -> CocoData:
    """Return images of 300x200 pixels whose annotations have a class and a box, numbered from 1."""
    made, number = [], 0
    for index, objects in enumerate(images):
        annotations: list[dict[str, Any]] = []
        for category, box in objects:
            number += 1
            annotations.append({"id": number, "category_id": category, "bbox": list(box), "iscrowd": int(crowd)})
        made.append(CocoImage(index, Path(f"{index}.jpg"), 300, 200, tuple(annotations)))
    categories = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})
    return CocoData(Path("instances.json"), categories, tuple(made), ())


def found(content: CocoData) -> list[tuple[str, int]]:
    return [(suspect.kind, suspect.annotation["id"]) for suspect in find_suspects(content)]


@pytest.mark.parametrize(
    ("box", "kinds"),
    [
        ((10, 10, 30, 20), []),
        ((-1, 0, 30, 20), []),
        ((-1.5, 0, 30, 20), ["outside"]),
        ((290, 190, 10, 13), ["outside"]),
        ((10, 10, 2, 8), []),
        ((10, 10, 1.9, 30), ["tiny"]),
        ((10, 10, 5, 3), ["tiny"]),
        ((0, 0, 300, 190), []),
        ((0, 0, 300, 191), ["enormous"]),
        ((-300, -200, 900, 600), ["outside", "enormous"]),
        ((10, 10, 200, 10), []),
        ((10, 10, 9, 190), ["thin"]),
        ((10, 10, 1, 190), ["tiny", "thin"]),
    ],
)
def test_boxes(box: Box, kinds: list[str]) -> None:
    assert found(data([(1, box)])) == [(kind, 1) for kind in kinds]
    assert not found(data([(1, box)], crowd=True))


def test_objects_that_are_annotated_twice() -> None:
    box, shifted, other = (10, 10, 100, 100), (11, 10, 100, 100), (14, 10, 100, 100)
    objects: list[tuple[int, Box]] = [(1, box), (1, other), (1, shifted), (1, box), (2, box)]
    assert found(data(objects)) == [("annotated twice", 4), ("annotated twice", 3), ("two classes", 5)]
    by_id = {suspect.annotation["id"]: suspect for suspect in find_suspects(data(objects))}
    assert {number: suspect.other and suspect.other["id"] for number, suspect in by_id.items()} == {4: 1, 3: 1, 5: 1}
    assert not found(data([(1, box)], [(1, box)]))  # in different images


def test_many_objects_in_one_image() -> None:
    """More objects than are compared at once, with a repetition of the first one at the end."""
    boxes: list[tuple[int, Box]] = [(1, (2 * (i % 140), 10 * (i // 140) + 5, 7, 7)) for i in range(600)]
    assert found(data([*boxes, boxes[0]])) == [("annotated twice", 601)]


def test_outliers() -> None:
    rng = np.random.default_rng(0)
    boxes: list[tuple[int, Box]] = [(1, (9.0 * i + 10, 20, *rng.uniform(20, 25, 2))) for i in range(25)]
    large, wide = (1, (50.0, 50.0, 120.0, 120.0)), (1, (50.0, 180.0, 80.0, 10.0))
    assert found(data(boxes)) == []
    assert found(data([*boxes, large, wide])) == [("unusual size", 26), ("unusual shape", 27)]
    assert found(data([*boxes[:10], large, wide])) == []  # too few objects to tell
    at_border = (1, (50.0, 190.0, 80.0, 10.0))
    assert found(data([*boxes, at_border])) == []


def test_the_order_of_kinds_and_no_annotation() -> None:
    assert found(data([])) == [] and found(data()) == []
    kinds = [suspect.kind for suspect in find_suspects(data([(1, (10, 10, 1, 190)), (1, (0, 0, 300, 200))]))]
    assert kinds == sorted(kinds, key=list(KINDS).index)


def test_photos() -> None:
    if not COCO_MINI.is_dir():
        pytest.skip(NO_PHOTOS)
    photos = load_coco(COCO_MINI / "annotations/instances_val2017.json", COCO_MINI / "val2017")
    suspects = find_suspects(photos)
    assert [suspect.kind for suspect in suspects if suspect.kind != "unusual shape"] == ["enormous", "enormous"]
