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
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    backend: Backend = "faster-coco-eval",
) -> dict[str, float]:
    """Compute the average precision and recall of detections as COCO defines them.

    Args:
        ground_truth: Content of a COCO annotation file.
        detections: Entries of a COCO results file: `image_id`, `category_id`, `score`, `bbox` as x, y, width, height in
            pixels and, for "segm", `segmentation` as a compressed run-length encoding. Only the best 100 detections
            of each image count.
        iou_types: "bbox" for boxes, "segm" for masks, or both.
        backend: Library that computes the metrics. The two agree.

    Returns:
        The metrics `bbox_AP`, `bbox_AP50`, …, `segm_ARl` in 0..1; a metric without ground truth is -1.

    Raises:
        TwinsError: If an option is unknown, or if "segm" is requested and a detection has no mask.
    """
    check_coco_options(iou_types, backend)
    coco_class, evaluation_class = _backend_classes(backend)
    metrics: dict[str, float] = {}
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
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics.update(
                {f"{iou_type}_{name}": float(v) for name, v in zip(_NAMES, evaluation.stats[:12], strict=True)}
            )
    return metrics


def check_coco_options(iou_types: Sequence[str], backend: str) -> None:
    """Raise `TwinsError` if `evaluate_coco` does not know these options."""
    unknown = set(iou_types) - {"bbox", "segm"}
    if unknown:
        raise TwinsError(f"iou_types has {sorted(unknown)}: choose from 'bbox' and 'segm'")
    if backend not in get_args(Backend):
        raise TwinsError(f"backend={backend!r}: choose 'faster-coco-eval' or 'pycocotools'")


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
        entry = {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0, **annotation, "id": index}
        if not entry.get("segmentation"):
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if isinstance(entry["segmentation"], Mapping) and isinstance(entry["segmentation"]["counts"], list):
            entry["segmentation"] = mask_api.frPyObjects(entry["segmentation"], image["height"], image["width"])
        annotations.append(entry)
    return {**ground_truth, "annotations": annotations}


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
