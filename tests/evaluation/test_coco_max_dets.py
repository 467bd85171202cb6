"""More detections than COCO's 100 per image can count: both backends agree with a slow computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twins_dense.errors import TwinsError
from twins_dense.evaluation.coco import evaluate_coco
from twins_dense.frameworks.mmengine.coco_metric import CocoMetric

Entry = dict[str, Any]
BOTH = pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
NUM_OBJECTS = 130


def many_objects() -> tuple[Entry, list[Entry]]:
    """Two images with 130 objects each in a grid; noisy detections of most of them, and some false ones."""
    rng = np.random.default_rng(7)
    annotations, detections = [], []
    for image_id in (1, 2):
        for number in range(NUM_OBJECTS):
            x, y = 30 * (number % 13), 30 * (number // 13)
            box = [x + 2, y + 2, int(rng.integers(10, 26)), int(rng.integers(10, 26))]
            annotations.append({"image_id": image_id, "category_id": 3, "bbox": box, "id": len(annotations) + 1})
            noisy = [float(value) for value in np.array(box) + rng.normal(0, 1.2, 4)]
            score = float(rng.random())
            if rng.random() < 0.9:
                detections.append({"image_id": image_id, "category_id": 3, "bbox": noisy, "score": score})
            if rng.random() < 0.3:
                false = [390.0, 20.0 * number, 9.0, 11.0]
                detections.append({"image_id": image_id, "category_id": 3, "bbox": false, "score": score})
    images = [{"id": i, "width": 400, "height": 3000} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cell"}]}, detections


def overlap(first: list[float], second: list[float]) -> float:
    sides = [min(first[i] + first[i + 2], second[i] + second[i + 2]) - max(first[i], second[i]) for i in range(2)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def slow_scores(truth: Entry, detections: list[Entry], limit: int) -> tuple[float, float]:
    """Compute AP and AR as the paper on COCO describes them, for one class without crowds."""
    precisions, recalls = [], []
    for threshold in np.arange(0.5, 0.96, 0.05):
        outcomes = []
        for image in truth["images"]:
            free = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]]
            best_first = sorted((d for d in detections if d["image_id"] == image["id"]), key=lambda d: -d["score"])
            for found in best_first[:limit]:
                best = max(free, key=lambda box: overlap(box, found["bbox"]), default=None)
                hit = best is not None and overlap(best, found["bbox"]) >= threshold
                if hit:
                    free.remove(best)
                outcomes.append((found["score"], hit))
        hits = np.cumsum([hit for _, hit in sorted(outcomes, key=lambda outcome: -outcome[0])])
        recall = hits / len(truth["annotations"])
        precision = hits / np.arange(1, len(hits) + 1)
        reachable = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
        precisions.append(np.mean(reachable))
        recalls.append(recall[-1])
    return float(np.mean(precisions)), float(np.mean(recalls))


@BOTH
@pytest.mark.parametrize("limit", [11, 50, 100, 125, 500])
def test_equals_a_slow_computation(backend: Any, limit: int) -> None:
    truth, detections = many_objects()
    found = evaluate_coco(truth, detections, iou_types=("bbox",), backend=backend, max_dets=limit)
    average_precision, average_recall = slow_scores(truth, detections, limit)
    assert found["bbox_AP"] == pytest.approx(average_precision, abs=1e-9)
    assert found[f"bbox_AR{limit}"] == pytest.approx(average_recall, abs=1e-9)
    assert [name for name in found if name.startswith("bbox_AR1")][:2] == ["bbox_AR1", "bbox_AR10"]


@BOTH
def test_a_perfect_detector_with_many_objects(backend: Any) -> None:
    """With COCO's limit, it can find only 100 of 130 objects; precision is 1 at 77 of the 101 recalls."""
    truth, _ = many_objects()
    perfect = [{**a, "score": 0.5} for a in truth["annotations"]]
    scores = {n: evaluate_coco(truth, perfect, iou_types=("bbox",), backend=backend, max_dets=n) for n in (100, 130)}
    assert scores[100]["bbox_AP50"] == pytest.approx(77 / 101)
    assert scores[130]["bbox_AP50"] == scores[130]["bbox_AP"] == scores[130]["bbox_AR130"] == pytest.approx(1)


@pytest.mark.parametrize("max_dets", [10, 0, -1, 1.5, "many", None, True])
def test_bad_limit(max_dets: Any) -> None:
    for evaluate in (lambda: evaluate_coco({}, [], max_dets=max_dets), lambda: CocoMetric(max_dets=max_dets)):
        with pytest.raises(TwinsError, match=rf"max_dets={max_dets!r}") as caught:
            evaluate()
        assert "\n" not in str(caught.value)


def test_class_names_are_not_formats() -> None:
    """A name with braces is only a name."""
    truth, detections = many_objects()
    truth["categories"][0]["name"] = "{cell} {}"
    assert evaluate_coco(truth, detections, iou_types=("bbox",), max_dets=200)["bbox_AP-{cell} {}"] >= 0
