"""mmsegmentation's IoU metric, with the IoU and the accuracy of each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import metrics
from torch import Tensor

from ...data.image_files import open_image
from ...evaluation.record import RecordWriter, Task
from .recording import RecordedMetric

_CONFIDENCE_SIZE = 256  # of the long side in pixels


class IoUMetric(RecordedMetric, metrics.IoUMetric):
    """mmsegmentation's IoUMetric, which also returns the IoU and the accuracy of each class in 0..1.

    They are called `IoU/NAME` and `Acc/NAME`. The IoU of a class is NaN if no pixel belongs to it or is assigned to it,
    and its accuracy if no pixel belongs to it.
    """

    task: Task = "segmentation"

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the metrics over all collected images; mmsegmentation's own are in percent."""
        results = self.with_finished(results)
        metrics = super().compute_metrics(results)
        intersections, unions, _, areas = (sum(areas) for areas in zip(*results, strict=True))
        for kind, values in (("IoU", intersections / unions), ("Acc", intersections / areas)):
            names = self.dataset_meta["classes"]
            metrics |= {f"{kind}/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        return metrics

    def obstacle(self, dataset: Any) -> str:
        if self.format_only:
            return "format_only=True"
        return "metainfo.classes selects some of the classes of the data set" if dataset.label_map else ""

    def settings(self) -> dict[str, Any]:
        meta = self.dataset_meta
        return {
            "palette": np.asarray(meta["palette"]).tolist(),
            "first_value": self._first_value,
            "ignore_index": self.ignore_index,
        }

    def entry_of(self, sample: Any, result: Any, index: int, writer: RecordWriter) -> dict[str, Any]:
        labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        dtype = np.uint8 if len(self.dataset_meta["classes"]) <= 254 else np.uint16
        return {
            "file": os.path.abspath(sample.metainfo["img_path"]),
            "height": labels.shape[0],
            "width": labels.shape[1],
            "labels": os.path.abspath(sample.metainfo["seg_map_path"]),
            "prediction": writer.write_map(f"{index:06}.png", labels.astype(dtype)),
            "confidence": writer.write_map(f"{index:06}_confidence.png", confidence(sample.seg_logits.data)),
        }

    def result_of(self, entry: Mapping[str, Any], folder: Path) -> Any:
        prediction = _read(folder / entry["prediction"])
        labels = _read(Path(entry["labels"]))
        if self._first_value:  # as mmsegmentation does with reduce_zero_label
            labels[labels == 0] = 255
            labels[labels != 255] -= 1
        return self.intersect_and_union(prediction, labels, len(self.dataset_meta["classes"]), self.ignore_index)

    @property
    def _first_value(self) -> int:
        """Value of the first class in the label maps on disk."""
        return int(bool(self.dataset_meta.get("reduce_zero_label")))


def confidence(logits: Tensor) -> np.ndarray:
    """Return the probability of the predicted class as uint8 in 0..255, of every nth pixel if the image is large.

    Args:
        logits: (K, H, W); for K = 1, probabilities.
    """
    step = -(-max(logits.shape[1:]) // _CONFIDENCE_SIZE)
    logits = logits[:, ::step, ::step].float()
    probabilities = torch.cat([logits, 1 - logits]) if len(logits) == 1 else logits.softmax(0)
    return (255 * probabilities.amax(0)).round().byte().cpu().numpy()


def _read(path: Path) -> Tensor:
    with open_image(path) as opened:
        return torch.from_numpy(np.asarray(opened).astype(np.int64))
