"""Read and write `metrics.json` and `metrics.jsonl`, which have the same names and units for both frameworks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..atomic import write_atomically

NAME = "metrics.json"
LINES_NAME = "metrics.jsonl"


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
    content["metrics"] = _json_values(metrics)
    write_atomically(work_dir / NAME, json.dumps(content, indent=2).encode() + b"\n")


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Return the metrics of a `metrics.json`, with NaN for null, or an empty dictionary if the file does not exist."""
    path = work_dir / NAME
    metrics = json.loads(path.read_bytes())["metrics"] if path.is_file() else {}
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def append_record(work_dir: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON object to the `metrics.jsonl` of a training run; numbers that are not finite become null.

    Args:
        work_dir: The work directory.
        record: `iter`, the number of finished iterations, and the values that were logged then.
    """
    with (work_dir / LINES_NAME).open("a") as file:
        file.write(json.dumps(_json_values(record)) + "\n")


def keep_records(work_dir: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Keep only the records of `metrics.jsonl` for which `keep` returns true; a last line cut by a kill is dropped."""
    path = work_dir / LINES_NAME
    if path.is_file():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        write_atomically(path, "".join(line for line in lines if keep(json.loads(line))).encode())


def _json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
