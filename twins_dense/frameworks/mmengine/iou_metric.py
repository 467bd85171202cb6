"""mmsegmentation's IoU metric, with the IoU of each class."""

from __future__ import annotations

from typing import Any

from mmseg.evaluation import metrics


class IoUMetric(metrics.IoUMetric):
    """mmsegmentation's IoUMetric, which also returns the IoU of each class as `IoU/NAME` in 0..1.

    The IoU of a class is NaN if no pixel belongs to it or is assigned to it.
    """

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the metrics over all collected images; mmsegmentation's own are in percent."""
        intersections, unions, *_ = (sum(areas) for areas in zip(*results, strict=True))
        names = self.dataset_meta["classes"]
        of_classes = zip(names, (intersections / unions).tolist(), strict=True)
        return {**super().compute_metrics(results), **{f"IoU/{name}": value for name, value in of_classes}}
