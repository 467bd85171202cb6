"""detectron2's evaluator counts as many detections per image as the detector returns; a slow reference agrees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from d2_fixtures import CONFIGS, MARKS, clean_detectron2, engine  # noqa: F401  (a fixture)
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from PIL import Image

from twins_dense.frameworks.detectron2.data import coco_dataset
from twins_dense.frameworks.options import TrainingOptions

pytestmark = MARKS

WIDTH, HEIGHT, NUM_OBJECTS = 160, 96, 150
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def objects() -> np.ndarray:
    """Return 150 separate boxes (x1, y1, x2, y2) of 5 to 8 pixels on a grid."""
    generator = np.random.default_rng(0)
    corners = np.array([(10 * column, 10 * row) for row in range(9) for column in range(16)])
    corners = np.concatenate([corners, [(160 - 9 * n - 9, 90) for n in range(6)]])[:NUM_OBJECTS].astype(float)
    corners[corners[:, 1] == 90, 1] = 88
    sizes = generator.integers(5, 8, (len(corners), 2))
    return np.concatenate([corners, corners + sizes], axis=1).clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])


def detections() -> tuple[np.ndarray, np.ndarray]:
    """Return boxes that are moved by up to one pixel, with 40 false ones, and their distinct scores."""
    generator = np.random.default_rng(1)
    moved = objects() + np.tile(generator.choice([0, 0, 0, 1], (NUM_OBJECTS, 2)), 2)
    false = np.concatenate([corner := generator.integers(0, 80, (40, 2)), corner + 9], axis=1)
    boxes = np.concatenate([moved, false]).clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    order = generator.permutation(len(boxes))
    return boxes[order], np.linspace(0.99, 0.01, len(boxes))


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return overlap / (sum(areas) - overlap)


def average_precision(num_kept: int) -> float:
    """Compute COCO's AP of one image and one class with the best `num_kept` detections, in the plainest way."""
    truth, (boxes, _) = objects(), detections()
    found = []
    for threshold in THRESHOLDS:
        free, hits = set(range(len(truth))), []
        for box in boxes[:num_kept]:
            overlaps = {index: iou(box, truth[index]) for index in free}
            # Of equal overlaps, COCO takes the last one.
            best = max(overlaps, key=lambda index: (overlaps[index], index))
            hits.append(overlaps[best] >= threshold)
            if hits[-1]:
                free.remove(best)
        num_hits = np.cumsum(hits)
        recall, precision = num_hits / len(truth), num_hits / np.arange(1, len(hits) + 1)
        found += [max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(found))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "a.png")
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        }
        for number, (x1, y1, x2, y2) in enumerate(objects().tolist(), 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("max_dets", [7, 10, 100, 120, 500])
def test_average_precision(data: Path, max_dets: int) -> None:
    coco_dataset("many", training=False, data_root=str(data), ann_file="a.json", image_dir=".")
    config = engine.load_config(CONFIGS / "mask_rcnn_svt_small_1x.py", ["dataloader.test.dataset.name=many"])
    engine.set_training(config, TrainingOptions(max_dets=max_dets))
    evaluator: Any = instantiate(config.dataloader.evaluator)
    boxes, scores = detections()
    # Fewer than ten cannot be the limit of the metric, but they are that of the detector.
    num_found = min(len(boxes), max_dets) if max_dets <= 10 else len(boxes)
    boxes, scores = boxes[:num_found], scores[:num_found]
    masks = torch.zeros(num_found, HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    found = Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(num_found, dtype=torch.int64),
        pred_masks=masks,
    )
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    results = evaluator.evaluate()
    expected = 100 * average_precision(max_dets)
    assert 0 < expected < 100
    assert results["bbox"]["AP"] == pytest.approx(expected)
    assert results["segm"]["AP"] == pytest.approx(expected)


def test_the_limit_matters() -> None:
    """Without more than 100 detections, a third of the objects would be missed."""
    assert average_precision(500) > average_precision(100) + 0.1
