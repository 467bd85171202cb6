"""hotcoco equals pycocotools on disturbed ground truth: the metrics of boxes and masks, of all classes and of each."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from detection_fixtures import COCO_MINI, NO_PHOTOS
from pycocotools import mask as mask_api

from twins_dense.data.coco import load_coco
from twins_dense.errors import TwinsError
from twins_dense.evaluation.coco import evaluate_coco

Entry = dict[str, Any]
TOLERANCE = 1e-12
PHOTOS = pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)


def synthetic() -> Entry:
    """Ground truth with boxes, polygons and crowds of all sizes on 15 images of different sizes."""
    rng = np.random.default_rng(11)
    images = [
        {"id": 7 * i, "height": int(rng.integers(97, 211)), "width": int(rng.integers(101, 241))} for i in range(15)
    ]
    annotations: list[Entry] = []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            width, height = (int(v) for v in rng.integers(4, (image["width"], image["height"])))
            x, y = int(rng.integers(0, image["width"] - width + 1)), int(rng.integers(0, image["height"] - height + 1))
            polygon = [x, y, x + width, y + height / 3, x + width / 2, y + height, x, y + height / 2]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([2, 3, 5, 90])),
                    "bbox": [x, y, width, height],
                    "area": float(rng.choice([0.4, 0.9])) * width * height,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": number, "name": f"class {number}"} for number in (2, 3, 5, 90, 91)]
    return {"images": images, "annotations": annotations, "categories": categories}


def real(split: str) -> Entry:
    data = load_coco(COCO_MINI / "annotations" / f"instances_{split}.json", COCO_MINI / split)
    return {
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in data.images],
        "annotations": [dict(annotation) for image in data.images for annotation in image.annotations],
        "categories": list(data.categories),
    }


def masks_of(content: Entry) -> dict[int, Entry]:
    """Return the compressed run-length encoding of each annotation by its id."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found = {}
    for annotation in content["annotations"]:
        mask = mask_api.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        found[annotation["id"]] = mask_api.merge(mask) if isinstance(mask, list) else mask
    return found


def as_detections(content: Entry) -> list[Entry]:
    """Return the ground truth as detections of score 1, without the crowds."""
    masks = masks_of(content)
    return [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 1.0, "segmentation": masks[annotation["id"]]}
        for annotation in content["annotations"]
        if not annotation["iscrowd"]
    ]


def disturb(content: Entry, detections: list[Entry], seed: int) -> tuple[Entry, list[Entry]]:
    """Change ground truth and detections at random.

    Some objects become crowds, some images lose their objects or their detections, and one has more than 100
    detections; detections are shifted, cut, missing, doubled, invented or of another class, and many have equal scores.
    """
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = [category["id"] for category in content["categories"]]
    emptied, silent = (set(rng.choice(list(sizes), 3, replace=False).tolist()) for _ in range(2))
    truth = {
        **content,
        "annotations": [
            {**annotation, "iscrowd": int(annotation["iscrowd"] or rng.random() < 0.15)}
            for annotation in content["annotations"]
            if annotation["image_id"] not in emptied
        ],
    }
    spread = float(rng.choice([0.02, 0.1, 0.3]))
    found: list[Entry] = []

    def add(entry: Entry, box: np.ndarray, mask: Entry | None = None) -> None:
        height, width = sizes[entry["image_id"]]
        box = np.maximum(box, [0, 0, 1, 1])
        [rectangle] = mask_api.frPyObjects(box[None], height, width)
        mask = rectangle if mask is None else mask_api.merge([mask, rectangle], intersect=True)
        score = float(rng.random())
        score = round(score, 1) if rng.random() < 0.5 else score
        found.append({**entry, "bbox": box.tolist(), "score": score, "segmentation": mask})

    for detection in detections:
        if detection["image_id"] in silent:
            continue
        for _ in range(rng.choice([0, 1, 2], p=[0.15, 0.75, 0.1])):
            x, y, width, height = detection["bbox"]
            box = np.array([x, y, width, height]) + rng.normal(0, spread, 4) * [width, height, width, height]
            category = int(rng.choice(categories)) if rng.random() < 0.1 else detection["category_id"]
            entry = {"image_id": detection["image_id"], "category_id": category}
            add(entry, box, detection["segmentation"] if rng.random() < 0.8 else None)
    crowded = int(rng.choice(list(sizes)))
    favourite = int(rng.choice(categories))
    for number in range(130 + len(sizes)):
        image_id = crowded if number < 130 else list(sizes)[number - 130]
        height, width = sizes[image_id]
        corner, size = rng.random(2) * [width - 3, height - 3], rng.random(2) * [width / 2, height / 2]
        add({"image_id": image_id, "category_id": favourite}, np.concatenate([corner, size]))
    order = rng.permutation(len(found))
    return truth, [found[i] for i in order]


def assert_backends_agree(truth: Entry, detections: list[Entry]) -> dict[str, float]:
    fast, reference = (evaluate_coco(truth, detections, backend=backend) for backend in ("hotcoco", "pycocotools"))
    assert list(fast) == list(reference)
    assert max(abs(fast[name] - reference[name]) for name in fast) <= TOLERANCE
    return fast


def assert_perfect(content: Entry) -> None:
    detections = as_detections(content)
    found = assert_backends_agree(content, detections)
    for name in ("bbox_AP", "bbox_AR100", "segm_AP", "segm_AR100"):
        assert found[name] == pytest.approx(1)


def assert_disturbed_agree(content: Entry, seeds: range) -> None:
    detections = as_detections(content)
    for seed in seeds:
        found = assert_backends_agree(*disturb(content, detections, seed))
        assert all(0 < found[f"{kind}_{name}"] < 1 for kind in ("bbox", "segm") for name in ("AP", "AP50", "AR100"))


class TestSynthetic:
    def test_ground_truth(self) -> None:
        assert_perfect(synthetic())

    def test_disturbances_are_as_described(self) -> None:
        content = synthetic()
        truth, detections = disturb(content, as_detections(content), 0)
        per_image = {i["id"]: sum(d["image_id"] == i["id"] for d in detections) for i in content["images"]}
        assert max(per_image.values()) > 100
        assert any(a["iscrowd"] for a in truth["annotations"])
        assert len({a["image_id"] for a in truth["annotations"]}) < len(content["images"])
        scores = [d["score"] for d in detections]
        assert len(set(scores)) < 0.7 * len(scores)

    def test_disturbed(self) -> None:
        assert_disturbed_agree(synthetic(), range(10))

    @pytest.mark.slow
    def test_many_disturbed(self) -> None:
        assert_disturbed_agree(synthetic(), range(10, 200))

    def test_no_detection_at_all(self) -> None:
        found = assert_backends_agree(synthetic(), [])
        assert found["bbox_AP"] == found["segm_AR100"] == 0
        assert found["bbox_AP-class 91"] == -1

    def test_no_object_at_all(self) -> None:
        content = synthetic()
        found = assert_backends_agree({**content, "annotations": []}, as_detections(content))
        assert set(found.values()) == {-1}

    def test_one_image(self) -> None:
        content = synthetic()
        image = content["images"][2]["id"]
        only = {
            **content,
            "images": [content["images"][2]],
            "annotations": [a for a in content["annotations"] if a["image_id"] == image],
        }
        assert only["annotations"]
        assert_perfect(only)

    @pytest.mark.parametrize("number", [float, lambda number: -1 - number, lambda number: f"id {number:03}"])
    def test_ids_can_be_floats_negative_or_text(self, number: Any) -> None:
        content = synthetic()
        truth, detections = disturb(content, as_detections(content), 3)
        expected = evaluate_coco(truth, detections)
        other, found = copy.deepcopy((truth, detections))
        for entry in (*other["images"], *other["categories"]):
            entry["id"] = number(entry["id"])
        for entry in (*other["annotations"], *found):
            entry.update({key: number(entry[key]) for key in ("image_id", "category_id")})
        agreed = assert_backends_agree(other, found)
        # Detections of equal score count in the order of the image ids.
        assert agreed == pytest.approx(expected, abs=0.1 if number(1) == -2 else 0)

    def test_max_dets(self) -> None:
        content = synthetic()
        truth, detections = disturb(content, as_detections(content), 5)
        results = [
            evaluate_coco(truth, detections, backend=backend, max_dets=50) for backend in ("hotcoco", "pycocotools")
        ]
        assert results[0] == pytest.approx(results[1], abs=TOLERANCE)
        assert "segm_AR50" in results[0]

    @pytest.mark.filterwarnings("error")
    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        content = synthetic()
        evaluate_coco(content, as_detections(content), max_dets=50)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("changes", "part"),
        [({"score": float("nan")}, "NaN"), ({"image_id": 4}, "4"), ({"category_id": 4}, "4")],
    )
    def test_bad_detections(self, changes: Entry, part: str) -> None:
        content = synthetic()
        detections = as_detections(content)
        with pytest.raises(TwinsError, match=part) as caught:
            evaluate_coco(content, [*detections, {**detections[0], **changes}])
        assert "\n" not in str(caught.value)


@PHOTOS
@pytest.mark.parametrize("split", ["train2017", "val2017"])
class TestPhotos:
    def test_ground_truth(self, split: str) -> None:
        assert_perfect(real(split))

    def test_disturbed(self, split: str) -> None:
        assert_disturbed_agree(real(split), range(2))

    @pytest.mark.slow
    def test_many_disturbed(self, split: str) -> None:
        assert_disturbed_agree(real(split), range(2, 202))
