"""Compute COCO's average precision with hotcoco or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from pycocotools import mask as mask_api

from ..errors import TwinsError, one_line

Backend = Literal["hotcoco", "pycocotools"]

SIZE_LIMITS = (32, 96)
"""COCO's limits of small, medium and large objects: sides, in pixels, of squares with the area of the object."""


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    backend: Backend = "hotcoco",
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
        The metrics `bbox_AP`, `bbox_AP50`, …, `segm_ARl` in 0..1, and those of each class as `bbox_AP-NAME` and
        `bbox_AP50-NAME`; a metric without ground truth is -1. The recall `bbox_AR100` has `max_dets` in its name.

    Raises:
        TwinsError: If an option is unknown, if "segm" is requested and a detection has no mask, or if a detection has
            an unknown image or category, or a score that is not a number.
    """
    check_coco_options(iou_types, backend, max_dets)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    metrics: dict[str, float] = {}
    for iou_type in iou_types:
        result = coco_evaluation(ground_truth, detections, iou_type, backend=backend, max_dets=max_dets).eval
        precision, recall = result["precision"], result["recall"]  # dimensions: see `_summary`
        values = dict(zip(_names(max_dets), _summary(precision, recall), strict=True))
        for name, thresholds in (("AP", slice(None)), ("AP50", slice(1))):
            for index, category in enumerate(sorted(names)):
                values[f"{name}-{names[category]}"] = _mean(precision[thresholds, :, index, 0, -1])
        metrics.update({f"{iou_type}_{name}": value for name, value in values.items()})
    return metrics


def coco_evaluation(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    *,
    backend: Backend = "hotcoco",
    max_dets: int = 100,
) -> Any:
    """Match detections to ground truth with a `COCOeval` of a library, and return it, evaluated and accumulated.

    In it, an image or category has the position of its id among the sorted ids, because hotcoco accepts only ids that
    are not negative, and an annotation has its position plus 1.

    Args:
        ground_truth: Content of a COCO annotation file.
        detections: Entries of a COCO results file (see `evaluate_coco`).
        iou_type: "bbox" or "segm".
        backend: Library that computes the metrics.
        max_dets: Number of detections that count per image and class.
    """
    if iou_type == "segm" and any("segmentation" not in detection for detection in detections):
        raise TwinsError("iou_types has 'segm', but the detections have no masks: use iou_types=('bbox',)")
    truth_content = complete_ground_truth(ground_truth)
    images, categories = (_positions(truth_content[key]) for key in ("images", "categories"))
    # loadRes would take the area of a mask from its box, and the area decides whether an object is small or large.
    shape = "bbox" if iou_type == "bbox" else "segmentation"

    def numbered(entry: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        ids = {"image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}
        return {**ids, **{key: entry[key] for key in keys}}

    truth, found = (_coco_class(backend)() for _ in range(2))
    try:
        truth.dataset = {
            "images": [
                {"id": images[image["id"]], "height": image["height"], "width": image["width"]}
                for image in truth_content["images"]
            ],
            "annotations": [
                numbered(annotation, "id", "bbox", "area", "iscrowd", "segmentation")
                for annotation in truth_content["annotations"]
            ],
            "categories": [{"id": position, "name": str(position)} for position in categories.values()],
        }
        results = [numbered(detection, "score", shape) for detection in detections]
    except KeyError as error:
        raise TwinsError(f"detections or annotations: {error} is missing or unknown; check their ids") from None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        if results:
            try:
                found = truth.loadRes(results)
            except ValueError as error:  # hotcoco refuses scores that are NaN
                raise TwinsError(f"detections: {one_line(error)}") from None
        else:  # pycocotools' loadRes needs at least one entry
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = _evaluation_class(backend)(truth, found, iou_type)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def metric_names(iou_types: Sequence[str], max_dets: int = 100) -> list[str]:
    """Return the names of the metrics of all classes together, in the order of `evaluate_coco`."""
    return [f"{iou_type}_{name}" for iou_type in iou_types for name in _names(max_dets)]


def check_coco_options(iou_types: Sequence[str], backend: str, max_dets: int = 100) -> None:
    """Raise `TwinsError` if `evaluate_coco` does not know these options."""
    unknown = set(iou_types) - {"bbox", "segm"}
    if unknown:
        raise TwinsError(f"iou_types has {sorted(unknown)}: choose from 'bbox' and 'segm'")
    if backend not in get_args(Backend):
        raise TwinsError(f"backend={backend!r}: choose 'hotcoco' or 'pycocotools'")
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


def coco_content(
    entries: Sequence[Mapping[str, Any]], category_ids: Sequence[int], classes: Sequence[str]
) -> tuple[dict[str, Any], list[Any]]:
    """Return evaluated images as the contents of a COCO annotation file and of a COCO results file.

    Args:
        entries: Images with `image`, `annotations` and `detections`, such as the entries of a record.
        category_ids: Category id of each label.
        classes: Name of each label.
    """
    ground_truth = {
        "images": [entry["image"] for entry in entries],
        "annotations": [annotation for entry in entries for annotation in entry["annotations"]],
        "categories": [{"id": category, "name": name} for category, name in zip(category_ids, classes, strict=True)],
    }
    return ground_truth, [detection for entry in entries for detection in entry["detections"]]


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


def _positions(entries: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    """Return the position of each id among the sorted ids."""
    return {key: position for position, key in enumerate(sorted(entry["id"] for entry in entries))}


def _summary(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """Return COCO's twelve metrics, in the order of `_names`.

    The libraries' own summaries expect that 100 detections count: pycocotools has no AP otherwise.

    Args:
        precision: (IoU thresholds, recalls, classes, object sizes, maximum numbers of detections); -1 if there is no
            ground truth.
        recall: The same dimensions without the recalls.
    """
    all_sizes, *sizes = range(4)
    return [
        *(_mean(precision[thresholds, ..., all_sizes, -1]) for thresholds in (slice(None), slice(1), slice(5, 6))),
        *(_mean(precision[..., size, -1]) for size in sizes),
        *(_mean(recall[..., all_sizes, limit]) for limit in range(3)),
        *(_mean(recall[..., size, -1]) for size in sizes),
    ]


def _mean(values: np.ndarray) -> float:
    """Return the mean of precisions or recalls; -1 if there is no ground truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _names(max_dets: int) -> tuple[str, ...]:
    """Return COCO's names of its twelve metrics, in their order."""
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", f"AR{max_dets}", "ARs", "ARm", "ARl")


def _coco_class(backend: Backend) -> Any:
    if backend == "hotcoco":
        import hotcoco

        return hotcoco.COCO
    from pycocotools.coco import COCO

    return COCO


def _evaluation_class(backend: Backend) -> Any:
    if backend == "hotcoco":
        import hotcoco

        return hotcoco.COCOeval
    from pycocotools.cocoeval import COCOeval

    return COCOeval
