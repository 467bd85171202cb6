"""mmsegmentation's IoU metric, with the IoU and the accuracy of each class."""

from __future__ import annotations

from typing import Any

from mmseg.evaluation import metrics


class IoUMetric(metrics.IoUMetric):
    """mmsegmentation's IoUMetric, which also returns the IoU and the accuracy of each class in 0..1.

    They are called `IoU/NAME` and `Acc/NAME`. The IoU of a class is NaN if no pixel belongs to it or is assigned to it,
    and its accuracy if no pixel belongs to it.
    """

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the metrics over all collected images; mmsegmentation's own are in percent."""
        metrics = super().compute_metrics(results)
        intersections, unions, _, areas = (sum(areas) for areas in zip(*results, strict=True))
        for kind, values in (("IoU", intersections / unions), ("Acc", intersections / areas)):
            names = self.dataset_meta["classes"]
            metrics |= {f"{kind}/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        return metrics
