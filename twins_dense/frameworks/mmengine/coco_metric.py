"""COCO's average precision as an MMEngine metric."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from ...evaluation.coco import Backend, check_coco_options, coco_content, coco_detections, evaluate_coco
from ...evaluation.record import RecordWriter, Task
from .recording import RecordedMetric


@METRICS.register_module()
class CocoMetric(RecordedMetric):
    """COCO's average precision over all evaluated images, as `coco/bbox_AP`, `coco/segm_AP50`, … in 0..1.

    Predictions are `BaseDataElement`s with the meta information of `CocoDetectionDataset` (`image_id`, `height`,
    `width`, `annotations`) and the fields `boxes` (N, 4) as x1 y1 x2 y2 in pixels of the stored image, `scores`,
    `labels` and, for "segm", `masks` bool (N, H, W).

    Args:
        iou_types: "bbox", "segm" or both.
        backend: Evaluation library (see `evaluate_coco`).
        max_dets: Number of detections per image that count; a run takes it from `model.max_dets`, see
            `config.set_max_dets_of_metric`.
    """

    default_prefix = "coco"
    task: Task = "detection"

    def __init__(
        self,
        iou_types: Sequence[str] = ("bbox",),
        backend: Backend = "hotcoco",
        max_dets: int = 100,
    ) -> None:
        # "gpu" gathers results through the process group, even with gloo; "cpu" would use a folder on disk.
        super().__init__(collect_device="gpu")
        check_coco_options(iou_types, backend, max_dets)
        self.iou_types = tuple(iou_types)
        self.backend: Backend = backend
        self.max_dets = max_dets

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Store one batch as COCO entries. Masks are encoded, because full-size masks would not fit into memory."""
        assert self.dataset_meta is not None
        for sample in data_samples:
            self.results.append(
                {
                    "image": {key: sample[key] for key in ("height", "width")} | {"id": sample["image_id"]},
                    "annotations": sample["annotations"],
                    "detections": coco_detections(sample, self.dataset_meta["category_ids"]),
                }
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return the average precision over all collected images."""
        assert self.dataset_meta is not None
        meta = self.dataset_meta
        content = coco_content(self.with_finished(results), meta["category_ids"], meta["classes"])
        return evaluate_coco(*content, iou_types=self.iou_types, backend=self.backend, max_dets=self.max_dets)

    def obstacle(self, dataset: Any) -> str:
        return ""

    def settings(self) -> dict[str, Any]:
        assert self.dataset_meta is not None
        category_ids = list(self.dataset_meta["category_ids"])
        return {"category_ids": category_ids, "iou_types": self.iou_types, "max_dets": self.max_dets}

    def entry_of(self, sample: Any, result: Any, index: int, writer: RecordWriter) -> dict[str, Any]:
        return {"file": os.path.abspath(sample.metainfo["file"]), **result}

    def result_of(self, entry: Mapping[str, Any], folder: Path) -> Any:
        return {name: entry[name] for name in ("image", "annotations", "detections")}
