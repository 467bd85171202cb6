"""Our evaluator equals detectron2's COCOEvaluator, and says what it cannot evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from d2_fixtures import MARKS, clean_detectron2, toy_files  # noqa: F401  (a fixture)
from detection_fixtures import COCO_MINI, NO_PHOTOS
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.errors import TwinsError
from twins_dense.frameworks.detectron2.data import coco_dataset
from twins_dense.frameworks.detectron2.detection_evaluator import DetectionEvaluator

pytestmark = MARKS


def perturbed(record: dict[str, Any], rng: np.random.Generator, *, num_false: int, grid: float | None) -> Instances:
    """Return detections of one image: its truth, moved, and false ones, some with wrong classes and equal scores.

    Args:
        record: An image in detectron2's format.
        rng: Source of randomness.
        num_false: Number of false detections.
        grid: Distance in pixels of the coordinates, or `None` for any float32 numbers.
    """
    height, width = record["height"], record["width"]
    boxes, masks, labels = [], [], []
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 2, 4))
        mask = decode_segmentation(annotation["segmentation"], height, width).astype(bool)
        masks.append(np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)))
        labels.append(rng.choice([annotation["category_id"], rng.integers(0, 3)], p=[0.8, 0.2]))
    num_true = len(boxes)
    for _ in range(num_false):
        corner = rng.uniform(0, [width - 9, height - 9])
        boxes.append(np.concatenate([corner, corner + rng.uniform(4, 9, 2)]))
        mask = np.zeros((height, width), bool)
        mask[int(corner[1]) : int(corner[1]) + 7, int(corner[0]) : int(corner[0]) + 7] = True
        masks.append(mask)
        labels.append(rng.integers(0, 3))
    # Scores of two digits, so that many are equal.
    scores = np.round(rng.uniform(0.05, 0.6, len(boxes)) + 0.3 * (np.arange(len(boxes)) < num_true), 2)
    coordinates = np.array(boxes).reshape(-1, 4)
    if grid is not None:
        coordinates = np.round(coordinates / grid) * grid
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.tensor(coordinates, dtype=torch.float32)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(labels, dtype=torch.int64).reshape(-1),
        pred_masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, height, width)),
    )


def results_of(evaluator: Any, records: list[dict[str, Any]], found: list[Instances]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for record, instances in zip(records, found, strict=True):
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
    return evaluator.evaluate()


def flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{task}/{name}": value for task, values in results.items() for name, value in values.items()}


class TestEquality:
    @pytest.mark.parametrize("max_dets", [None, 50, 300])
    # Coordinates on the grid have widths that are exact in float32, in which detectron2 computes them.
    @pytest.mark.parametrize("grid", [0.125, None], ids=["grid", "float32"])
    @pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
    def test_toy_images(self, toy_data: Path, max_dets: int | None, grid: float | None, backend: Any) -> None:
        records = coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        rng = np.random.default_rng(0)
        found = [perturbed(record, rng, num_false=130, grid=grid) for record in records]
        theirs = COCOEvaluator("toy", max_dets_per_image=max_dets, use_fast_impl=False)
        ours = DetectionEvaluator("toy", max_dets_per_image=max_dets, backend=backend)
        expected = flat(results_of(theirs, records, found))
        result = flat(results_of(ours, records, found))
        assert list(result) == list(expected) and len(result) == 2 * (6 + 3)
        assert result == pytest.approx(expected, rel=0, abs=1e-10 if grid else 1e-3, nan_ok=True)  # percent
        assert 10 < result["bbox/AP"] < 90 and 10 < result["segm/AP"] < 90

    @pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)
    def test_photos(self) -> None:
        """They have crowds, classes without objects, and images without objects."""
        records = coco_dataset("photos", training=False, **toy_files(COCO_MINI, "val"))
        assert any(annotation["iscrowd"] for record in records for annotation in record["annotations"])
        rng = np.random.default_rng(1)
        found = [perturbed(record, rng, num_false=3, grid=0.125) for record in records]
        expected = flat(results_of(COCOEvaluator("photos", use_fast_impl=False), records, found))
        result = flat(results_of(DetectionEvaluator("photos"), records, found))
        assert list(result) == list(expected) and len(result) == 2 * (6 + 80)
        assert result == pytest.approx(expected, rel=0, abs=1e-10, nan_ok=True)
        assert any(np.isnan(value) for value in result.values()) and 5 < result["segm/AP"] < 95

    def test_a_data_set_of_detectron2s_catalog(self, toy_data: Path) -> None:
        files = toy_files(toy_data, "val")
        records = coco_dataset("ours", training=False, **files)
        annotations = str(toy_data / files["ann_file"])
        register_coco_instances("theirs", {}, annotations, str(toy_data / files["image_dir"]))
        meta = {name: MetadataCatalog.get("ours").get(name) for name in ("thing_classes",)}
        contiguous = MetadataCatalog.get("ours").thing_dataset_id_to_contiguous_id
        MetadataCatalog.get("theirs").set(**meta, thing_dataset_id_to_contiguous_id=contiguous)
        rng = np.random.default_rng(2)
        found = [perturbed(record, rng, num_false=5, grid=None) for record in records]
        ours, theirs = DetectionEvaluator("ours"), DetectionEvaluator("theirs")
        assert flat(results_of(ours, records, found)) == pytest.approx(
            flat(results_of(theirs, records, found)), nan_ok=True
        )
        assert ours.truth == theirs.truth and len(ours.truth) == len(records)


class TestNothingFound:
    @pytest.mark.parametrize("with_masks", [False, True])
    def test_no_detection_is_zero(self, toy_data: Path, with_masks: bool) -> None:
        """detectron2's COCOEvaluator returns NaN here, which looks as if there were no ground truth."""
        records = coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        empty = [
            perturbed({**record, "annotations": []}, np.random.default_rng(), num_false=0, grid=None)
            for record in records
        ]
        if not with_masks:
            for instances in empty:
                instances.remove("pred_masks")
        result = results_of(DetectionEvaluator("toy"), records, empty)
        assert list(result) == (["bbox", "segm"] if with_masks else ["bbox"])
        assert all(values["AP"] == 0 for values in result.values())

    def test_a_single_class_is_not_listed(self, tmp_path: Path, toy_data: Path) -> None:
        files = toy_files(toy_data, "val")
        content = json.loads((toy_data / files["ann_file"]).read_text())
        content["categories"] = content["categories"][:1]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][0]["id"]
        (tmp_path / "one.json").write_text(json.dumps(content))
        image_dir = str(toy_data / files["image_dir"])
        records = coco_dataset("one", training=False, ann_file=str(tmp_path / "one.json"), image_dir=image_dir)
        found = [perturbed(record, np.random.default_rng(3), num_false=0, grid=None) for record in records]
        for instances in found:
            instances.pred_classes.zero_()
        assert len(flat(results_of(DetectionEvaluator("one"), records, found))) == 2 * 6


class TestErrors:
    def test_an_unknown_data_set(self) -> None:
        with pytest.raises(TwinsError, match=r"'nowhere' has no COCO annotation file.*coco_dataset"):
            DetectionEvaluator("nowhere")

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"images": [{}]}', '{"images": [], "annotations": [{"image_id": 3}]}']
    )
    def test_a_broken_annotation_file(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "broken.json").write_text(content)
        register_coco_instances("broken", {}, str(tmp_path / "broken.json"), str(tmp_path))
        MetadataCatalog.get("broken").set(thing_classes=["a"], thing_dataset_id_to_contiguous_id={1: 0})
        with pytest.raises(TwinsError, match=r"broken\.json' cannot be read") as caught:
            DetectionEvaluator("broken")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
    def test_a_bad_number_of_detections(self, toy_data: Path, value: Any) -> None:
        coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        with pytest.raises(TwinsError, match="max_dets="):
            DetectionEvaluator("toy", max_dets_per_image=value)

    def test_a_bad_backend(self, toy_data: Path) -> None:
        coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        with pytest.raises(TwinsError, match="backend='fast'"):
            DetectionEvaluator("toy", backend="fast")  # type: ignore[arg-type]

    def test_an_image_of_another_data_set(self, toy_data: Path) -> None:
        coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        found = Instances((4, 4), pred_boxes=Boxes(torch.zeros(0, 4)))
        with pytest.raises(TwinsError, match="image 12345 is not in data set 'toy'"):
            DetectionEvaluator("toy").process([{"image_id": 12345}], [{"instances": found}])
