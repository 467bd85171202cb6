"""Describe the training run in the report: the facts, and the learning curves from `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics_file
from ..folders import runs_beside
from ..record import Record
from .charts import Line, line_chart
from .formatting import number_of
from .page import Section, render

_MOST_POINTS = 200  # of a curve
_MOST_LOSSES = 7
# Scores that are shown in the learning curves, by name in `metrics.jsonl`.
_SCORES = {
    "coco/bbox_AP": "box AP",
    "coco/bbox_AP50": "box AP50",
    "coco/segm_AP": "mask AP",
    "coco/segm_AP50": "mask AP50",
    "mIoU": "mIoU",
    "mAcc": "mAcc",
    "aAcc": "aAcc",
}


@dataclass(frozen=True)
class History:
    """Values that a run has logged, each as (iterations, values).

    Attributes:
        losses: Training losses by name; `loss` is their sum.
        validation_loss: Sum of the losses on the validation images; empty if it was not computed.
        scores: Scores on the validation images by the name for the reader, as fractions.
        learning_rate: The learning rate.
        num_iterations: Number of finished iterations.
        num_epochs: Number of epochs, if the run counts them.
        seconds: Approximate duration of training, without evaluation.
    """

    losses: Mapping[str, tuple[np.ndarray, np.ndarray]]
    validation_loss: tuple[np.ndarray, np.ndarray]
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
    learning_rate: tuple[np.ndarray, np.ndarray]
    num_iterations: int
    num_epochs: int | None
    seconds: float


def find_run(record: Record) -> Path | None:
    """Return the training run that an evaluated checkpoint comes from, or `None` if it is not found.

    It is the folder of the checkpoint. If that was moved, it is the folder beside the evaluation that contains a
    checkpoint of the same name.
    """
    checkpoint = Path(record.about.checkpoint)
    for folder in (checkpoint.parent, *runs_beside(record.folder.parent)):
        if (folder / checkpoint.name).is_file() and (folder / metrics_file.LINES_NAME).is_file():
            return folder
    return None


def run_facts(record: Record, run: Path | None) -> list[tuple[str, str]]:
    """Return the facts about an evaluation, and about the training run if it is known."""
    about, config = record.about, record.about.config
    history = None if run is None else read_history(run)
    contents = f"{number_of(about.num_images, 'image')}, {number_of(len(about.classes), 'class')}"
    facts = [
        ("Model", _model(config)),
        ("Checkpoint", about.checkpoint),
        (
            "Evaluated on",
            f"{about.dataset}: {contents}",
        ),
        ("Trained on", _training_data(config)),
        ("Training", "" if history is None else _duration(history)),
        ("Engine", about.engine),
        ("Versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        ("Device", about.device),
        ("Evaluation started", about.started),
        ("Command", about.command),
    ]
    return [(name, value) for name, value in facts if value]


def run_sections(run: Path | None) -> list[Section]:
    """Return the section of the learning curves, or nothing if the run has logged nothing."""
    history = None if run is None else read_history(run)
    if history is None:
        return []
    figures = []
    if history.losses:
        losses = [_line(name, *points, strong=name == "loss") for name, points in history.losses.items()]
        if len(history.validation_loss[0]):
            losses.insert(1, _line("validation loss", *history.validation_loss))
        figures.append(
            (_chart(losses[:_MOST_LOSSES], "loss", "Losses by iteration"), "The sum of the losses and its parts.")
        )
    if history.scores:
        scores = [
            _line(name, x, 100 * y, strong=name.endswith((" AP", "mIoU"))) for name, (x, y) in history.scores.items()
        ]
        figures.append((_chart(scores, "score in percent", "Scores by iteration"), "Scores on the validation images."))
    if len(history.learning_rate[0]) > 1:
        rate = _line("learning rate", *history.learning_rate)
        figures.append((_chart([rate], "learning rate", "Learning rate by iteration"), "The learning rate."))
    if not figures:
        return []
    return [Section("learning-curves", "Learning curves", render("run.html.j2", figures=figures, history=history))]


def read_history(run: Path) -> History | None:
    """Read the `metrics.jsonl` of a run of either engine; return `None` if it contains nothing.

    detectron2 writes its own names: `iteration` counts from 0, `total_loss` is the sum of the losses, and scores such
    as `bbox/AP` are in percent.
    """
    path = run / metrics_file.LINES_NAME
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(_renamed(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            continue  # a last line that a kill has cut
    if not records:
        return None
    records.sort(key=lambda record: record["iter"])
    names = list(dict.fromkeys(name for record in records for name in record))
    losses = sorted((name for name in names if "loss" in name and "/" not in name), key=lambda name: name != "loss")
    epochs = [record["epoch"] for record in records if "epoch" in record]
    seconds, before = 0.0, 0
    for record in records:
        if isinstance(record.get("time"), (int, float)):
            seconds += record["time"] * (record["iter"] - before)
            before = record["iter"]
    return History(
        losses={name: _points(records, name) for name in losses},
        validation_loss=_points(records, "val/loss"),
        scores={title: _points(records, name) for name, title in _SCORES.items() if name in names},
        learning_rate=_points(records, "lr"),
        num_iterations=records[-1]["iter"],
        num_epochs=max(epochs) if epochs else None,
        seconds=seconds,
    )


def _renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the names and units of MMEngine's runs."""
    if "iteration" not in record:
        return {**record, "iter": int(record["iter"])}
    found: dict[str, Any] = {}
    for name, value in record.items():
        if name.startswith(("bbox/", "segm/")) and isinstance(value, (int, float)):
            found[f"coco/{name.replace('/', '_')}"] = value / 100
        elif name == "total_loss":
            found["loss"] = value
        else:
            found[name] = value
    found["iter"] = int(record["iteration"]) + 1
    return found


def _points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations at which a value was logged, and the values; of many, the means of groups."""
    found = [(r["iter"], r[name]) for r in records if isinstance(r.get(name), (int, float)) and math.isfinite(r[name])]
    points = np.array(found, float).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        points = np.array([group.mean(0) for group in np.array_split(points, _MOST_POINTS)])
    return points[:, 0], points[:, 1]


def _line(name: str, x: np.ndarray, y: np.ndarray, *, strong: bool = False) -> Line:
    return Line(name, x.tolist(), y.tolist(), strong=strong)


def _chart(lines: Sequence[Line], y_label: str, title: str) -> Any:
    ends = ", ".join(f"{line.name} {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines if len(line.y))
    return line_chart(lines, x_label="iteration", y_label=y_label, description=f"{title}, from first to last: {ends}.")


def _model(config: Mapping[str, Any]) -> str:
    model = _get(config, "model")
    names = [str(model.get("type") or model.get("_target_") or "").split(".")[-1]]
    names.append(str(_get(model, "decode_head").get("type") or ""))
    names.append(_variant(model))
    return ", ".join(name for name in names if name)


def _variant(node: Any) -> str:
    """Return the first value of a key `variant` below a node; a variant that is no name has one inside."""
    if isinstance(node, Mapping):
        if "variant" in node:
            variant = node["variant"]
            return str(variant.get("name", "")) if isinstance(variant, Mapping) else str(variant)
        return next(filter(None, map(_variant, node.values())), "")
    return ""


def _training_data(config: Mapping[str, Any]) -> str:
    dataset = _get(config, "train_dataloader", "dataset") or _get(config, "dataloader", "train", "dataset")
    path = dataset.get("ann_file") or dataset.get("image_dir") or _get(dataset, "data_prefix").get("img_path") or ""
    root = dataset.get("data_root") or ""
    return str(Path(root) / path) if root or path else ""


def _get(node: Any, *names: str) -> Mapping[str, Any]:
    """Return a nested mapping; an empty one if it does not exist."""
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _duration(history: History) -> str:
    parts = [number_of(history.num_iterations, "iteration")]
    if history.num_epochs is not None:
        parts.insert(0, number_of(history.num_epochs, "epoch"))
    if history.seconds:
        minutes = history.seconds / 60
        time = (
            f"{history.seconds:.0f} s"
            if minutes < 1
            else f"{minutes:.0f} min"
            if minutes < 120
            else f"{minutes / 60:.1f} h"
        )
        parts.append(f"about {time}")
    return ", ".join(parts)
