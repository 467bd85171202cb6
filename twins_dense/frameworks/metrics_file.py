"""Read and write `metrics.json`, which has the same schema and units for both frameworks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import write_atomically

NAME = "metrics.json"


def write_metrics(
    work_dir: Path,
    metrics: Mapping[str, float],
    *,
    epoch: int | None = None,
    iteration: int | None = None,
    losses: Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    dataset: str | None = None,
) -> None:
    """Write the `metrics.json` of a training run or an evaluation.

    Args:
        work_dir: Folder to write to.
        metrics: Metrics by name; scores are fractions in 0..1. Values that are not finite, such as COCO's AP of a class
            without instances, become null, because JSON has no NaN.
        epoch: Number of finished epochs, for runs that count epochs.
        iteration: Number of finished iterations.
        losses: Latest losses of a training run, by name.
        checkpoint: Checkpoint that was evaluated.
        dataset: Data set that the checkpoint was evaluated on.
    """
    fields: dict[str, Any] = {
        "checkpoint": checkpoint,
        "dataset": dataset,
        "epoch": epoch,
        "iter": iteration,
        "losses": losses,
    }
    content = {name: value for name, value in fields.items() if value is not None}
    content["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_atomically(work_dir / NAME, json.dumps(content, indent=2).encode() + b"\n")


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Return the metrics of a `metrics.json`, with NaN for null, or an empty dictionary if the file does not exist."""
    path = work_dir / NAME
    metrics = json.loads(path.read_bytes())["metrics"] if path.is_file() else {}
    return {name: math.nan if value is None else value for name, value in metrics.items()}
