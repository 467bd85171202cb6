"""COCO's average precision as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ...errors import TwinsError
from ...evaluation.coco import Backend, backend_modules, coco_detections, evaluate_coco


@METRICS.register_module()
class CocoMetric(BaseMetric):
    """COCO AP as an MMEngine metric over the images that a loop has shown, named `coco/bbox_AP`, `coco/segm_AP50`, ….

    Predictions are `BaseDataElement`s with the meta of `CocoDetectionDataset` (`image_id`, `height`, `width`,
    `annotations`) and fields `boxes` (N, 4) x1 y1 x2 y2 in pixels of the stored image, `scores`, `labels` and,
    for "segm", `masks` bool (N, H, W).
    """

    default_prefix = "coco"

    def __init__(self, iou_types: Sequence[str] = ("bbox",), backend: Backend = "faster-coco-eval") -> None:
        # "gpu" gathers through the process group, gloo included; "cpu" would write a folder into the working directory.
        super().__init__(collect_device="gpu")
        unknown = set(iou_types) - {"bbox", "segm"}
        if unknown:
            raise TwinsError(f"iou_types holds {sorted(unknown)}: choose out of 'bbox' and 'segm'")
        backend_modules(backend)
        self.iou_types = tuple(iou_types)
        self.backend: Backend = backend

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep one batch as COCO entries; masks are encoded at once, because full-size masks would not fit."""
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
        """AP over all collected images."""
        assert self.dataset_meta is not None
        categories = [
            {"id": category, "name": name}
            for category, name in zip(self.dataset_meta["category_ids"], self.dataset_meta["classes"], strict=True)
        ]
        ground_truth = {
            "images": [result["image"] for result in results],
            "annotations": [annotation for result in results for annotation in result["annotations"]],
            "categories": categories,
        }
        detections = [detection for result in results for detection in result["detections"]]
        return evaluate_coco(ground_truth, detections, iou_types=self.iou_types, backend=self.backend)
