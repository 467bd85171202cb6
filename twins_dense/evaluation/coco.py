"""COCO's average precision, by faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_api

from ..errors import TwinsError

Backend = Literal["faster-coco-eval", "pycocotools"]
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    backend: Backend = "faster-coco-eval",
) -> dict[str, float]:
    """Average precision and recall of detections, as COCO defines them (at most 100 detections an image).

    Args:
        ground_truth: the content of a COCO annotation file.
        detections: entries of a COCO results file: `image_id`, `category_id`, `score`, `bbox` x y w h in pixels and,
            for "segm", `segmentation` as compressed RLE.
        iou_types: out of "bbox" and "segm".
        backend: who computes it; the two agree.

    Returns:
        `bbox_AP`, `bbox_AP50`, …, `segm_ARl` in 0..1; -1 where there is no ground truth to average over.
    """
    coco_module, eval_module = backend_modules(backend)
    metrics: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = coco_module.COCO()
        truth.dataset = complete_ground_truth(ground_truth)
        truth.createIndex()
        for iou_type in iou_types:
            if iou_type == "segm" and any("segmentation" not in detection for detection in detections):
                raise TwinsError("iou_types holds 'segm', and the detections have no masks: score iou_types=('bbox',)")
            if detections:
                found = truth.loadRes(
                    [{key: value for key, value in d.items() if key not in _other_type(iou_type)} for d in detections]
                )
            else:  # loadRes looks at the first entry
                found = coco_module.COCO()
                found.dataset = {**truth.dataset, "annotations": []}
                found.createIndex()
            evaluation = eval_module(truth, found, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics.update(
                {f"{iou_type}_{name}": float(v) for name, v in zip(_NAMES, evaluation.stats[:12], strict=True)}
            )
    return metrics


def coco_detections(sample: Mapping[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's predictions (fields as in `CocoMetric`) as entries of a COCO results file."""
    corners = np.asarray(sample["boxes"], dtype=np.float64)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    detections = [
        {"image_id": sample["image_id"], "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(
            boxes.tolist(), np.asarray(sample["scores"]).tolist(), np.asarray(sample["labels"]).tolist(), strict=True
        )
    ]
    if "masks" in sample:
        for detection, mask in zip(detections, np.asarray(sample["masks"], dtype=np.uint8), strict=True):
            rle = mask_api.encode(np.asfortranarray(mask))
            detection["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return detections


def complete_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that evaluation needs and custom data sets may lack: id, area, iscrowd and a segmentation as RLE."""
    images = {image["id"]: image for image in ground_truth["images"]}
    annotations = []
    for index, annotation in enumerate(ground_truth["annotations"], start=1):
        image = images[annotation["image_id"]]
        entry = {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0, **annotation, "id": index}
        if not entry.get("segmentation"):
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if isinstance(entry["segmentation"], Mapping) and isinstance(entry["segmentation"]["counts"], list):
            entry["segmentation"] = mask_api.frPyObjects(entry["segmentation"], image["height"], image["width"])
        annotations.append(entry)
    return {**ground_truth, "annotations": annotations}


def _other_type(iou_type: str) -> tuple[str, ...]:
    # loadRes computes areas from the box where there is one, and COCO sorts small, medium and large by the mask's area.
    return ("segmentation",) if iou_type == "bbox" else ("bbox",)


def backend_modules(backend: str) -> tuple[ModuleType, Any]:
    if backend == "faster-coco-eval":
        import faster_coco_eval

        return faster_coco_eval, faster_coco_eval.COCOeval_faster
    if backend == "pycocotools":
        from pycocotools import coco, cocoeval

        return coco, cocoeval.COCOeval
    raise TwinsError(f"backend={backend!r}: choose 'faster-coco-eval' or 'pycocotools'")
