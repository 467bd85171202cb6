"""`metrics.json`: one schema and one unit, whichever framework has run."""

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
    """Write `metrics.json` of a training run or an evaluation.

    Args:
        work_dir: Folder of the file.
        metrics: By name; scores are fractions in 0..1. A value that is not finite, such as COCO's AP of a class without
            an instance, becomes null, because JSON has no NaN.
        epoch: Number of finished epochs, for runs that count epochs.
        iteration: Number of finished iterations.
        losses: The last losses of a training run, by name.
        checkpoint: The checkpoint that was evaluated.
        dataset: The data set that it was evaluated on.
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
    """Return the metrics of a `metrics.json`, with NaN for null; an empty dictionary if there is no such file."""
    path = work_dir / NAME
    metrics = json.loads(path.read_bytes())["metrics"] if path.is_file() else {}
    return {name: math.nan if value is None else value for name, value in metrics.items()}
