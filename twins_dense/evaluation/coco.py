"""Compute COCO's average precision with faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from pycocotools import mask as mask_api

from ..errors import TwinsError

Backend = Literal["faster-coco-eval", "pycocotools"]


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    backend: Backend = "faster-coco-eval",
    max_dets: int = 100,
) -> dict[str, float]:
    """Compute the average precision and recall of detections as COCO defines them.

    Args:
        ground_truth: Content of a COCO annotation file.
        detections: Entries of a COCO results file: `image_id`, `category_id`, `score`, `bbox` as x, y, width, height in
            pixels and, for "segm", `segmentation` as a compressed run-length encoding.
        iou_types: "bbox" for boxes, "segm" for masks, or both.
        backend: Library that computes the metrics. The two agree.
        max_dets: Number of detections that count per image and class, those with the highest scores; more than 10.
            COCO's own value is 100.

    Returns:
        The metrics `bbox_AP`, `bbox_AP50`, …, `segm_ARl` in 0..1, and the AP of each class as `bbox_AP-NAME`; a metric
        without ground truth is -1. The recall `bbox_AR100` has `max_dets` in its name.

    Raises:
        TwinsError: If an option is unknown, or if "segm" is requested and a detection has no mask.
    """
    check_coco_options(iou_types, backend, max_dets)
    coco_class, evaluation_class = _backend_classes(backend)
    metrics: dict[str, float] = {}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = coco_class()
        truth.dataset = complete_ground_truth(ground_truth)
        truth.createIndex()
        for iou_type in iou_types:
            if iou_type == "segm" and any("segmentation" not in detection for detection in detections):
                raise TwinsError("iou_types has 'segm', but the detections have no masks: use iou_types=('bbox',)")
            if detections:
                found = truth.loadRes(
                    [{key: value for key, value in d.items() if key not in _other_type(iou_type)} for d in detections]
                )
            else:  # loadRes needs at least one entry
                found = coco_class()
                found.dataset = {**truth.dataset, "annotations": []}
                found.createIndex()
            evaluation = evaluation_class(truth, found, iou_type)
            evaluation.params.maxDets = [1, 10, max_dets]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values = dict(zip(_names(max_dets), map(float, evaluation.stats[:12]), strict=True))
            precisions = evaluation.eval["precision"][..., 0, -1]  # thresholds, recalls, classes; all object sizes
            values["AP"] = _average_precision(precisions)
            for index, category in enumerate(evaluation.params.catIds):
                values[f"AP-{names[category]}"] = _average_precision(precisions[:, :, index])
            metrics.update({f"{iou_type}_{name}": value for name, value in values.items()})
    return metrics


def metric_names(iou_types: Sequence[str], max_dets: int = 100) -> list[str]:
    """Return the names of the metrics of all classes together, in the order of `evaluate_coco`."""
    return [f"{iou_type}_{name}" for iou_type in iou_types for name in _names(max_dets)]


def check_coco_options(iou_types: Sequence[str], backend: str, max_dets: int = 100) -> None:
    """Raise `TwinsError` if `evaluate_coco` does not know these options."""
    unknown = set(iou_types) - {"bbox", "segm"}
    if unknown:
        raise TwinsError(f"iou_types has {sorted(unknown)}: choose from 'bbox' and 'segm'")
    if backend not in get_args(Backend):
        raise TwinsError(f"backend={backend!r}: choose 'faster-coco-eval' or 'pycocotools'")
    if type(max_dets) is not int or max_dets <= 10:
        raise TwinsError(f"max_dets={max_dets!r}: choose a whole number above 10")


def coco_detections(sample: Mapping[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the predictions of one image as entries of a COCO results file.

    Args:
        sample: `image_id`, `boxes` (N, 4) as x1, y1, x2, y2 in pixels, `scores` (N,), `labels` (N,) and, optionally,
            `masks` (N, height, width).
        category_ids: Category id of each label.
    """
    masks = sample.get("masks", [None] * len(sample["boxes"]))
    return [
        {"image_id": sample["image_id"], **coco_detection(box, score, category_ids[label], mask)}
        for box, score, label, mask in zip(
            np.asarray(sample["boxes"]),
            np.asarray(sample["scores"]).tolist(),
            np.asarray(sample["labels"]).tolist(),
            masks,
            strict=True,
        )
    ]


def coco_detection(box: np.ndarray, score: float, category_id: int, mask: Any = None) -> dict[str, Any]:
    """Return a detection as an entry of a COCO results file, without `image_id`.

    Args:
        box: x1, y1, x2, y2 in pixels.
        score: The score in 0..1.
        category_id: Category id of the class.
        mask: (height, width), bool or 0 and 1; `None` for a detection without a mask.
    """
    left, top, right, bottom = np.asarray(box, dtype=np.float64).tolist()
    detection = {"category_id": category_id, "bbox": [left, top, right - left, bottom - top], "score": score}
    if mask is not None:
        rle = mask_api.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
        detection["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return detection


def complete_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Return ground truth with the fields that evaluation needs: unique ids, areas, `iscrowd` and segmentations.

    The box stands in for a missing segmentation, and uncompressed run-length encodings are compressed.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    annotations = []
    for index, annotation in enumerate(ground_truth["annotations"], start=1):
        image = images[annotation["image_id"]]
        entry = {"iscrowd": 0, **annotation, "id": index}
        if entry.get("area") is None:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        if not entry.get("segmentation"):
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if isinstance(entry["segmentation"], Mapping) and isinstance(entry["segmentation"]["counts"], list):
            entry["segmentation"] = mask_api.frPyObjects(entry["segmentation"], image["height"], image["width"])
        annotations.append(entry)
    return {**ground_truth, "annotations": annotations}


def _average_precision(precision: np.ndarray) -> float:
    """Return the mean of a part of the precisions that COCO's evaluation computes; -1 if there is no ground truth.

    pycocotools' own summary of all of them looks for 100 detections per image, and finds nothing if another number
    counts.
    """
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def _names(max_dets: int) -> tuple[str, ...]:
    """Return COCO's names of its twelve metrics, in their order."""
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", f"AR{max_dets}", "ARs", "ARm", "ARl")


def _other_type(iou_type: str) -> tuple[str, ...]:
    # loadRes would take the area of a mask from its box, and the area decides whether an object is small or large.
    return ("segmentation",) if iou_type == "bbox" else ("bbox",)


def _backend_classes(backend: Backend) -> tuple[Any, Any]:
    """Return the data class and the evaluation class of a backend."""
    if backend == "faster-coco-eval":
        import faster_coco_eval

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    from pycocotools import coco, cocoeval

    return coco.COCO, cocoeval.COCOeval
