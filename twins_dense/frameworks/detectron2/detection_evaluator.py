"""COCO's average precision as a detectron2 evaluator, which can record the detections of each image."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ...errors import TwinsError, one_line
from ...evaluation.coco import Backend, check_coco_options, coco_content, coco_detections, evaluate_coco
from ...evaluation.record import RecordWriter
from .checks import dataset_meta_of

# Names of detectron2's COCOEvaluator, in its order.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SWITCHES = {"segm": "mask_on", "keypoints": "keypoint_on"}  # attributes of detectron2's StandardROIHeads
_MAX_DETS = 100  # COCO's own number of detections per image
_log = logging.getLogger("detectron2.evaluation")  # for the log file, not for the console


class DetectionEvaluator(DatasetEvaluator):
    """COCO's average precision of boxes and masks, with the names and the percentages of detectron2's `COCOEvaluator`.

    Each image becomes an entry with `file` (absolute path), `image` (`id`, `height`, `width`), `annotations` (its
    ground truth as in the annotation file, crowds included) and `detections` (entries of a COCO results file). In
    contrast to `COCOEvaluator`, only the images that were evaluated count, `evaluate_coco` computes the metrics, widths
    and heights of boxes are computed in float64, and a detector that finds nothing has an AP of 0 instead of NaN.

    Args:
        dataset_name: Name of the data set in detectron2's catalogs.
        max_dets_per_image: Number of detections per image and class that count; `None` means COCO's 100. If it is 10 or
            less, COCO's 100 applies, because the detector has the same limit.
        backend: Library that computes the metrics (see `evaluate_coco`).

    Attributes:
        with_masks: Whether masks are evaluated as well; true from the first output with masks on.
        writer: Writer of the record of this evaluation, or `None`. Images that it has found finished are evaluated with
            the others, but must not be evaluated again.

    Raises:
        TwinsError: If the data set has no annotation file in detectron2's catalogs, or an argument is out of range.
    """

    def __init__(
        self, dataset_name: str, *, max_dets_per_image: int | None = None, backend: Backend = "hotcoco"
    ) -> None:
        is_number = type(max_dets_per_image) is int and max_dets_per_image > 0
        self.max_dets: Any = max_dets_per_image
        if max_dets_per_image is None or (is_number and max_dets_per_image <= 10):
            self.max_dets = _MAX_DETS
        check_coco_options((), backend, self.max_dets)
        self.backend: Backend = backend
        self.dataset_name = dataset_name
        self.meta = dataset_meta_of(dataset_name)
        self.truth = _ground_truth(dataset_name)
        self.indices = {image_id: index for index, image_id in enumerate(self.truth)}
        self.with_masks = False
        self.writer: RecordWriter | None = None
        self._entries: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._entries = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            if entry["image_id"] not in self.truth:
                raise TwinsError(
                    f"image {entry['image_id']!r} is not in data set {self.dataset_name!r}, which dataloader.evaluator "
                    "names: name the data set of dataloader.test"
                )
            found = output["instances"].to("cpu")
            sample = {
                "image_id": entry["image_id"],
                "boxes": found.pred_boxes.tensor,
                "scores": found.scores,
                "labels": found.pred_classes,
            }
            if found.has("pred_masks"):
                self.with_masks = True
                sample["masks"] = found.pred_masks
            detections = coco_detections(sample, self.meta["category_ids"])
            self._add({**self.truth[entry["image_id"]], "detections": detections})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics of boxes and masks in percent; only the first process has them."""
        parts = comm.gather(self._entries)
        if not comm.is_main_process():
            return {}
        entries = [entry for part in parts for entry in part]
        if self.writer is not None:
            entries += self.writer.finished
        return coco_results(
            entries,
            self.meta["classes"],
            self.meta["category_ids"],
            with_masks=self.with_masks,
            max_dets=self.max_dets,
            backend=self.backend,
        )

    def _add(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        if self.writer is not None:
            self.writer.add({"index": self.indices[entry["image"]["id"]], **entry})


def coco_results(
    entries: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    category_ids: Sequence[int],
    *,
    with_masks: bool,
    max_dets: int,
    backend: Backend = "hotcoco",
) -> dict[str, dict[str, float]]:
    """Return the metrics of recorded images by IoU type, as `COCOEvaluator` does: in percent, or NaN if unknown.

    Args:
        entries: Entries of `DetectionEvaluator` or of a record.
        classes: Names of the classes, in the order of the labels.
        category_ids: Category id of each label.
        with_masks: Whether masks are evaluated even if no detection has one.
        max_dets: Number of detections per image and class that count.
        backend: Library that computes the metrics (see `evaluate_coco`).
    """
    ground_truth, detections = coco_content(entries, category_ids, classes)
    iou_types = ["bbox"]
    if with_masks or any("segmentation" in detection for detection in detections):
        iou_types.append("segm")
    metrics = evaluate_coco(ground_truth, detections, iou_types=iou_types, backend=backend, max_dets=max_dets)
    names = [*METRICS, *(f"AP-{name}" for name in classes if len(classes) > 1)]
    results = {}
    for iou_type in iou_types:
        values = {name: metrics[f"{iou_type}_{name}"] for name in names}
        results[iou_type] = {name: 100 * value if value >= 0 else float("nan") for name, value in values.items()}
        lines = (f"\n{name}: {value:.3f}" for name, value in results[iou_type].items())
        _log.info(f"Evaluation results for {iou_type} (Average Precision in percent):{''.join(lines)}")
    return results


def tasks_of(model: nn.Module) -> list[str]:
    """Return what a detector predicts: "bbox" and, depending on its heads, "segm" and "keypoints"."""
    heads = getattr(model, "roi_heads", None)
    return ["bbox", *(task for task, switch in _SWITCHES.items() if getattr(heads, switch, False))]


def _ground_truth(dataset_name: str) -> dict[Any, dict[str, Any]]:
    """Return the entries of a data set without detections, by image id."""
    metadata = MetadataCatalog.get(dataset_name)
    images = metadata.get("coco_images")  # from `coco_dataset`
    if images is not None:
        return {image.id: _entry(image.path, vars(image), image.annotations) for image in images}
    if not metadata.get("json_file") or not metadata.get("thing_dataset_id_to_contiguous_id"):
        raise TwinsError(
            f"data set {dataset_name!r} has no COCO annotation file in detectron2's catalog: build it with "
            "coco_dataset, or set dataloader.evaluator to detectron2's COCOEvaluator"
        )
    try:
        content = json.loads(Path(metadata.json_file).read_bytes())
        by_id = {image["id"]: image for image in content["images"]}
        annotations: dict[Any, list[Any]] = {image_id: [] for image_id in by_id}
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        folder = Path(metadata.get("image_root") or "")
        return {
            image_id: _entry(folder / image["file_name"], image, annotations[image_id])
            for image_id, image in sorted(by_id.items())
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TwinsError(
            f"data set {dataset_name!r}: {str(metadata.json_file)!r} cannot be read as a COCO annotation file "
            f"({type(error).__name__}: {one_line(error)})"
        ) from None


def _entry(path: Path, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "file": str(path.absolute()),
        "image": {key: image[key] for key in ("id", "height", "width")},
        "annotations": list(annotations),
    }
