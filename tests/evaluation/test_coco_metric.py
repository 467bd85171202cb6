"""COCO's average precision equals answers computed by hand, both backends agree, and ground truth scores 1."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_fixtures import COCO_MINI, NO_PHOTOS, rectangle
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from pycocotools import mask as mask_utils

from twins_dense.data.coco import CocoData, load_coco
from twins_dense.errors import TwinsError
from twins_dense.evaluation.coco import coco_detections, evaluate_coco
from twins_dense.frameworks.mmengine.coco_metric import CocoMetric

Entry = dict[str, Any]
HEIGHT, WIDTH = 211, 241
NAMES = [f"AP{kind}" for kind in ("", "50", "75", "s", "m", "l")] + [
    f"AR{kind}" for kind in ("1", "10", "100", "s", "m", "l")
]
OF_CLASSES = [f"{metric}-{name}" for metric in ("AP", "AP50") for name in ("three", "eight")]
BOTH = pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])


def truth(*annotations: Entry, num_images: int = 1) -> Entry:
    """Content of an annotation file with images 1, 2, … and categories 3 and 8."""
    return {
        "images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(num_images)],
        "annotations": [
            {"image_id": 1, "category_id": 3, "id": number, **annotation}
            for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [{"id": 3, "name": "three"}, {"id": 8, "name": "eight"}],
    }


def detection(box: list[float], score: float, **changes: Any) -> Entry:
    return {"image_id": 1, "category_id": 3, "bbox": box, "score": score, **changes}


def code(x: int, y: int, width: int, height: int) -> Entry:
    """A filled rectangle as a compressed run-length encoding."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    found = mask_utils.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode("ascii")}


def triangle(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x, y + height]]


def triangle_code(box: tuple[int, int, int, int]) -> Entry:
    found = mask_utils.merge(mask_utils.frPyObjects(triangle(*box), HEIGHT, WIDTH))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode("ascii")}


def boxes_only(ground_truth: Entry, detections: list[Entry], backend: Any) -> dict[str, float]:
    found = evaluate_coco(ground_truth, detections, iou_types=("bbox",), backend=backend)
    assert list(found) == [f"bbox_{name}" for name in [*NAMES, *OF_CLASSES]]
    return {name.removeprefix("bbox_"): value for name, value in found.items()}


@BOTH
class TestByHand:
    """Answers computed by hand. COCO reads precision at 101 recalls: 0, 0.01, …, 1."""

    def test_one_hit(self, backend: Any) -> None:
        found = boxes_only(truth({"bbox": [10, 20, 50, 40]}), [detection([10, 20, 50, 40], 0.3)], backend)
        assert found == pytest.approx(
            {"AP": 1, "AP50": 1, "AP75": 1, "APs": -1, "APm": 1, "APl": -1}
            | {"AR1": 1, "AR10": 1, "AR100": 1, "ARs": -1, "ARm": 1, "ARl": -1}
            | {"AP-three": 1, "AP-eight": -1, "AP50-three": 1, "AP50-eight": -1}
        )

    def test_one_hit_one_miss_one_false(self, backend: Any) -> None:
        """The precision is 1 up to recall 0.5 and 0 above: 51 of the 101 points."""
        ground_truth = truth({"bbox": [10, 20, 50, 40]}, {"bbox": [100, 20, 50, 40]})
        detections = [detection([10, 20, 50, 40], 0.9), detection([10, 120, 50, 40], 0.8)]
        found = boxes_only(ground_truth, detections, backend)
        assert found["AP"] == pytest.approx(51 / 101)
        assert found["AR1"] == found["AR100"] == pytest.approx(0.5)

    def test_a_false_one_with_the_higher_score(self, backend: Any) -> None:
        detections = [detection([10, 20, 50, 40], 0.8), detection([10, 120, 50, 40], 0.9)]
        found = boxes_only(truth({"bbox": [10, 20, 50, 40]}), detections, backend)
        assert found["AP"] == pytest.approx(0.5)
        assert (found["AR1"], found["AR10"]) == pytest.approx((0, 1))

    def test_the_second_of_two_on_one_object_is_false(self, backend: Any) -> None:
        """Hit, false, hit: the precision is 1 up to recall 1/2 (51 points), then 2/3 (50 points)."""
        ground_truth = truth({"bbox": [10, 20, 50, 40]}, {"bbox": [100, 20, 50, 40]})
        scores = [([10, 20, 50, 40], 0.9), ([10, 20, 50, 40], 0.8), ([100, 20, 50, 40], 0.7)]
        found = boxes_only(ground_truth, [detection(box, score) for box, score in scores], backend)
        assert found["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)

    def test_overlap_of_0_62(self, backend: Any) -> None:
        """This is a hit at the thresholds 0.5, 0.55 and 0.6 of 0.5, 0.55, …, 0.95."""
        found = boxes_only(truth({"bbox": [0, 0, 100, 50]}), [detection([0, 0, 62, 50], 0.5)], backend)
        assert (found["AP"], found["AP50"], found["AP75"]) == pytest.approx((0.3, 1, 0))

    def test_classes_count_the_same(self, backend: Any) -> None:
        """One class is perfect on three objects, the other misses its only object."""
        boxes = [[10, 20, 50, 40], [100, 20, 50, 40], [10, 120, 50, 40]]
        annotations = [{"bbox": box} for box in boxes]
        ground_truth = truth(*annotations, {"bbox": [100, 120, 50, 40], "category_id": 8})
        # The wrong class, 3 instead of 8, is a false detection, but it has the lowest score.
        detections = [*(detection(box, 0.9) for box in boxes), detection([100, 120, 50, 40], 0.1)]
        found = boxes_only(ground_truth, detections, backend)
        assert (found["AP"], found["AP-three"], found["AP-eight"]) == pytest.approx((0.5, 1, 0))

    def test_sizes(self, backend: Any) -> None:
        """Only the medium one of three objects is found: recall 1/3, so 34 of the 101 points."""
        ground_truth = truth({"bbox": [0, 0, 31, 32]}, {"bbox": [50, 0, 33, 32]}, {"bbox": [100, 0, 97, 96]})
        found = boxes_only(ground_truth, [detection([50, 0, 33, 32], 0.5)], backend)
        assert (found["AP"], found["APs"], found["APm"], found["APl"]) == pytest.approx((34 / 101, 0, 1, 0))

    def test_a_hit_inside_a_crowd_is_not_false(self, backend: Any) -> None:
        ground_truth = truth({"bbox": [10, 20, 50, 40]}, {"bbox": [100, 100, 90, 90], "iscrowd": 1})
        detections = [detection([10, 20, 50, 40], 0.5), detection([110, 110, 20, 20], 0.9)]
        assert boxes_only(ground_truth, detections, backend)["AP"] == pytest.approx(1)
        ground_truth["annotations"][1]["iscrowd"] = 0  # false first, and one of two objects is found
        assert boxes_only(ground_truth, detections, backend)["AP"] == pytest.approx(0.5 * 51 / 101)

    def test_on_the_wrong_image(self, backend: Any) -> None:
        ground_truth = truth({"bbox": [10, 20, 50, 40]}, num_images=2)
        assert boxes_only(ground_truth, [detection([10, 20, 50, 40], 0.5, image_id=2)], backend)["AP"] == 0

    def test_a_hundred_detections_per_image(self, backend: Any) -> None:
        false = [detection([100, 100, 20, 20], 0.9)] * 99
        for extra, expected in ((0, 1), (1, 0)):
            detections = [*false, *false[:extra], detection([10, 20, 50, 40], 0.5)]
            assert boxes_only(truth({"bbox": [10, 20, 50, 40]}), detections, backend)["AR100"] == expected

    def test_masks_count_by_their_own_overlap(self, backend: Any) -> None:
        """The box is exact, but the mask covers only 0.62 of the object."""
        ground_truth = truth({"bbox": [10, 20, 100, 50], "segmentation": rectangle(10, 20, 100, 50), "area": 5000})
        detections = [detection([10, 20, 100, 50], 0.5, segmentation=code(10, 20, 62, 50))]
        found = evaluate_coco(ground_truth, detections, backend=backend)
        assert found["bbox_AP"] == pytest.approx(1)
        assert (found["segm_AP"], found["segm_AP50"], found["segm_AP75"]) == pytest.approx((0.3, 1, 0))

    def test_sizes_of_masks_are_their_areas(self, backend: Any) -> None:
        """A false detection with a medium box and a small mask lowers only the AP of small masks and medium boxes."""
        area = {"area": 900.0}
        small = {"bbox": [10, 20, 30, 30], "segmentation": rectangle(10, 20, 30, 30), **area}
        medium = {"bbox": [100, 20, 40, 40], "segmentation": rectangle(100, 20, 40, 40), "area": 1600.0}
        detections = [
            detection([150, 150, 40, 40], 0.9, segmentation=code(150, 150, 10, 40)),
            detection([10, 20, 30, 30], 0.8, segmentation=code(10, 20, 30, 30)),
            detection([100, 20, 40, 40], 0.7, segmentation=code(100, 20, 40, 40)),
        ]
        found = evaluate_coco(truth(small, medium), detections, backend=backend)
        assert (found["bbox_APs"], found["bbox_APm"]) == pytest.approx((1, 0.5))
        assert (found["segm_APs"], found["segm_APm"]) == pytest.approx((0.5, 1))

    def test_no_detections(self, backend: Any) -> None:
        found = evaluate_coco(truth({"bbox": [10, 20, 50, 40]}), [], backend=backend)
        assert set(found) == {f"{kind}_{name}" for kind in ("bbox", "segm") for name in [*NAMES, *OF_CLASSES]}
        assert found["bbox_AP"] == found["segm_AP"] == found["bbox_AR100"] == found["bbox_APm"] == 0

    def test_no_ground_truth(self, backend: Any) -> None:
        found = boxes_only(truth(), [detection([10, 20, 50, 40], 0.5)], backend)
        assert set(found.values()) == {-1}

    @pytest.mark.parametrize("segmentation", [{}, {"segmentation": None}, {"segmentation": []}])
    def test_box_only_annotations(self, backend: Any, segmentation: Entry) -> None:
        """Segmentation, area and iscrowd are missing, so the box stands in for the mask."""
        ground_truth = truth({"bbox": [10, 20, 100, 50], **segmentation})
        detections = [detection([10, 20, 100, 50], 0.5, segmentation=code(10, 20, 62, 50))]
        found = evaluate_coco(ground_truth, detections, backend=backend)
        assert (found["bbox_AP"], found["segm_AP"]) == pytest.approx((1, 0.3))

    def test_inputs_stay_as_they_are(self, backend: Any) -> None:
        ground_truth = truth({"bbox": [10, 20, 50, 40]}, {"bbox": [1, 2, 3, 4], "segmentation": []})
        detections = [detection([10, 20, 50, 40], 0.5, segmentation=code(10, 20, 50, 40))]
        before = copy.deepcopy((ground_truth, detections))
        evaluate_coco(ground_truth, detections, backend=backend)
        assert (ground_truth, detections) == before


def random_data(seed: int) -> tuple[Entry, list[Entry]]:
    """Triangles and their boxes, small to large, on 12 images of which 3 are empty; crowds; noisy detections."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        width, height = rng.integers(*((5, 30), (50, 90), (150, 205))[rng.integers(3)], 2)
        return int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height)), int(width), int(height)

    annotations, detections = [], []
    for image_id in range(1, 13):
        for _ in range(0 if image_id % 4 == 0 else rng.integers(1, 9)):
            x, y, w, h = box()
            crowd = int(rng.random() < 0.15)
            counts = [x * HEIGHT + y, *[h, HEIGHT - h] * (w - 1), h]
            counts.append(HEIGHT * WIDTH - sum(counts))
            segmentation: Any = {"size": [HEIGHT, WIDTH], "counts": counts} if crowd else triangle(x, y, w, h)
            category = int(rng.choice([3, 8]))
            annotations.append(
                {"image_id": image_id, "category_id": category, "bbox": [x, y, w, h], "iscrowd": crowd}
                | {"area": w * h / 2, "segmentation": segmentation}
            )
            for _ in range(rng.integers(0, 3)):
                dx, dy, dw, dh = (int(v) for v in rng.normal(0, 0.12, 4) * [w, h, w, h])
                near = (max(x + dx, 0), max(y + dy, 0), max(w + dw, 1), max(h + dh, 1))
                detections.append((image_id, category, near))
        detections += [(image_id, int(rng.choice([3, 8])), box()) for _ in range(rng.integers(0, 4))]
    entries = [
        detection([float(v) for v in near], float(rng.random()), segmentation=triangle_code(near))
        | {"image_id": image_id, "category_id": category}
        for image_id, category, near in detections
    ]
    return truth(*annotations, num_images=12), entries


@pytest.mark.parametrize("seed", range(5))
def test_backends_agree(seed: int) -> None:
    ground_truth, detections = random_data(seed)
    assert any(annotation["iscrowd"] for annotation in ground_truth["annotations"])
    fast = evaluate_coco(ground_truth, detections, backend="hotcoco")
    slow = evaluate_coco(ground_truth, detections, backend="pycocotools")
    assert fast == pytest.approx(slow, abs=1e-6)
    for name in ("bbox_AP", "bbox_APs", "bbox_APm", "bbox_APl", "segm_AP", "segm_ARl"):
        assert 0 < fast[name] < 1, name  # the detections are neither all wrong nor perfect
    assert fast["bbox_AP"] != fast["segm_AP"]


def truth_as_detections(data: CocoData) -> tuple[Entry, list[Entry]]:
    """All annotations as ground truth and, without the crowds, as detections of score 1 with masks by pycocotools."""
    detections = []
    for image in data.images:
        for annotation in image.annotations:
            if annotation["iscrowd"]:
                continue
            mask = annotation["segmentation"]
            if isinstance(mask, list):
                mask = mask_utils.merge(mask_utils.frPyObjects(mask, image.height, image.width))
            shown = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            detections.append({**shown, "score": 1.0, "segmentation": mask})
    content = {
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in data.images],
        "annotations": [annotation for image in data.images for annotation in image.annotations],
        "categories": list(data.categories),
    }
    return content, detections


@BOTH
@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_ground_truth_is_perfect(split: str, backend: Any) -> None:
    data = load_coco(COCO_MINI / "annotations" / f"instances_{split}.json", COCO_MINI / split)
    content, detections = truth_as_detections(data)
    assert len(detections) < len(content["annotations"])  # there are crowds
    found = evaluate_coco(content, detections, backend=backend)
    for kind in ("bbox", "segm"):
        assert (found[f"{kind}_AP"], found[f"{kind}_AP75"], found[f"{kind}_AR100"]) == pytest.approx((1, 1, 1))


def element(image_id: int, annotations: list[Entry], boxes: list[list[float]], labels: list[int]) -> BaseDataElement:
    """A prediction with rectangles as masks, in descending order of scores."""
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    meta = {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "annotations": annotations}
    return BaseDataElement(
        metainfo=meta,
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor([0.9 - 0.1 * i for i in range(len(boxes))]),
        masks=masks,
    )


META = {"classes": ("three", "eight"), "category_ids": (3, 8)}
ELEMENTS = (
    element(
        1,
        [{"image_id": 1, "category_id": 8, "bbox": [10, 20, 50, 40]}],
        [[10, 20, 60, 60], [100, 100, 150, 150]],
        [1, 1],
    ),
    element(2, [{"image_id": 2, "category_id": 3, "bbox": [30, 40, 100, 50]}], [[30, 40, 92, 90]], [0]),
    element(3, [{"image_id": 3, "category_id": 8, "bbox": [30, 40, 60, 50]}], [], []),
)


class TestMetric:
    @BOTH
    def test_two_batches(self, backend: Any) -> None:
        """Class 8 finds one of two objects (51 of 101 points), class 3 finds its object at an overlap of 0.62 (0.3)."""
        evaluator = Evaluator(CocoMetric(iou_types=("bbox", "segm"), backend=backend))
        evaluator.dataset_meta = META
        evaluator.process(list(ELEMENTS[:2]))
        evaluator.process(list(ELEMENTS[2:]))
        found = evaluator.evaluate(3)
        assert found["coco/bbox_AP"] == found["coco/segm_AP"] == pytest.approx((51 / 101 + 0.3) / 2)
        detections = [
            detection([10, 20, 50, 40], 0.9, category_id=8, segmentation=code(10, 20, 50, 40)),
            detection([100, 100, 50, 50], 0.8, category_id=8, segmentation=code(100, 100, 50, 50)),
            detection([30, 40, 62, 50], 0.9, image_id=2, segmentation=code(30, 40, 62, 50)),
        ]
        ground_truth = truth(*(e.annotations[0] for e in ELEMENTS), num_images=3)
        expected = evaluate_coco(ground_truth, detections, backend=backend)
        assert found == pytest.approx({f"coco/{name}": value for name, value in expected.items()}, abs=1e-6)

    def test_a_second_evaluation_starts_afresh(self) -> None:
        evaluator = Evaluator(CocoMetric())
        evaluator.dataset_meta = META
        results = []
        for _ in range(2):
            evaluator.process(list(ELEMENTS))
            results.append(evaluator.evaluate(3))
        assert results[0] == results[1]
        assert set(results[0]) == {f"coco/bbox_{name}" for name in [*NAMES, *OF_CLASSES]}

    def test_toy_ground_truth_is_perfect(self, toy_data: Path) -> None:
        """The targets of the data set have the labels, corners and masks of the annotations."""
        from twins_dense.frameworks.mmengine.detection_data import CocoDetectionDataset

        files = {"ann_file": "annotations/instances_val2017.json", "image_dir": "val2017", "data_root": str(toy_data)}
        targets = CocoDetectionDataset(**files, training=True, with_masks=True)
        shown = CocoDetectionDataset(**files, training=False, with_masks=False)
        evaluator = Evaluator(CocoMetric(iou_types=("bbox", "segm")))
        evaluator.dataset_meta = shown.metainfo
        for target, sample in zip(targets, shown, strict=True):
            found = sample["data_samples"]
            for name, value in target["data_samples"].items():
                found.set_field(value, name)
            found.set_field(torch.ones(len(found.boxes)), "scores")
            evaluator.process([found])
        metrics = evaluator.evaluate(len(shown))
        assert metrics["coco/bbox_AP"] == metrics["coco/segm_AP"] == pytest.approx(1)

    @pytest.mark.parametrize("arguments", [{"iou_types": ("bbox", "mask")}, {"backend": "mine"}])
    def test_errors(self, arguments: Entry) -> None:
        value = "mask" if "iou_types" in arguments else "mine"
        with pytest.raises(TwinsError, match=rf"^[^\n]*'{value}'[^\n]*choose[^\n]*$"):
            CocoMetric(**arguments)
        with pytest.raises(TwinsError, match=rf"^[^\n]*'{value}'[^\n]*choose[^\n]*$"):
            evaluate_coco(truth(), [], **arguments)


class TestResultsFile:
    def test_entries(self) -> None:
        entries = coco_detections(ELEMENTS[0].to_dict(), (3, 8))
        assert json.loads(json.dumps(entries)) == entries
        assert [entry["bbox"] for entry in entries] == [[10, 20, 50, 40], [100, 100, 50, 50]]
        assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [(1, 8), (1, 8)]
        assert [entry["score"] for entry in entries] == pytest.approx([0.9, 0.8])
        assert [entry["segmentation"] for entry in entries] == [code(10, 20, 50, 40), code(100, 100, 50, 50)]

    def test_no_detections(self) -> None:
        assert coco_detections(ELEMENTS[2].to_dict(), (3, 8)) == []

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.float32,
            torch.float64,
        ],
    )
    def test_the_sample_stays_as_it_is(self, dtype: torch.dtype) -> None:
        sample = ELEMENTS[0].to_dict() | {"boxes": torch.tensor([[10.0, 20, 60, 60], [1, 2, 3, 4]], dtype=dtype)}
        before = sample["boxes"].clone()
        coco_detections(sample, (3, 8))
        assert torch.equal(sample["boxes"], before)
