"""Load a trained model from a run, a checkpoint or the catalog."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from ..errors import TwinsError, one_line
from ..frameworks import OpenedCheckpoint, open_checkpoint
from ..weights.catalog import CATALOG, WeightsSpec
from .model import ClassificationModel, DetectionModel, Model, Precision, SegmentationModel

Source = str | Path | tuple[str | Path, str | Path]


def load_model(
    source: Source,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    overrides: Sequence[str] = (),
) -> Model:
    """Load a trained model.

    No code from a checkpoint is executed: the config that it contains is data, and only known types are built from it.

    Args:
        source: A work directory (its best checkpoint, else its last); a checkpoint of `twins-dense train`; a published
            segmentor or classifier by catalog name; or a pair of a config (path or name) and a checkpoint.
        device: Device to run on, such as "cuda:1"; `None` chooses a GPU if there is one.
        precision: "float32", or "bfloat16" to compute most operations in bfloat16.
        overrides: Overrides of the config, of the form `key=value`.

    Returns:
        A model with `predict` and `evaluate`.

    Raises:
        TwinsError: if there is no such model, a checkpoint does not fit its config or contains no config, or the device
            or the precision is not available.

    Example:
        >>> model = load_model("work_dirs/mine")
        >>> found = model.predict("photo.jpg")
        >>> found.draw().save("drawn.jpg")
    """
    chosen = _device(device)
    _check_precision(precision, chosen)
    spec = _published(source)
    if spec is not None and spec.task == "classification":
        if overrides:
            raise TwinsError(f"override {overrides[0]!r}: the published classifier {source!r} has no config")
        return ClassificationModel(spec.name, chosen, precision)
    opened = open_source(source, overrides)
    predictor = opened.engine.predictor(copy.deepcopy(opened.config), opened.path, chosen)
    if predictor.task == "segmentation":
        return SegmentationModel(opened, predictor, chosen, precision)
    return DetectionModel(opened, predictor, chosen, precision)


def open_source(source: Source, overrides: Sequence[str] = ()) -> OpenedCheckpoint:
    """Open a source like `load_model`, except for published classifiers, without loading a model.

    Raises:
        TwinsError: as `open_checkpoint` does, and for a published classifier.
    """
    spec = _published(source)
    if spec is None:
        return open_checkpoint(source, overrides)
    if spec.task == "classification":
        raise TwinsError(f"{spec.name!r} is a published classifier: evaluate it by `twins-dense validate`")
    return open_checkpoint((_config_of(spec), spec.name), overrides)


def _published(source: Source) -> WeightsSpec | None:
    """Return the catalog entry that a source names, or `None`; files and folders of that name take precedence."""
    return CATALOG.get(source) if isinstance(source, str) and not Path(source).exists() else None


def _config_of(spec: WeightsSpec) -> str:
    """Return the name of the config that a published segmentor was trained with."""
    head, schedule = ("upernet", "160k") if "upernet" in spec.name else ("semantic_fpn", "80k")
    return f"mmseg/{head}_{spec.variant}_{schedule}"


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise TwinsError(f"device={str(device)!r} is not available ({one_line(error)}); try 'cpu'") from None
    return chosen


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in get_args(Precision):
        raise TwinsError(f"precision={precision!r}: choose float32 or bfloat16")
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise TwinsError("precision='bfloat16': this GPU does not support it; choose float32")
