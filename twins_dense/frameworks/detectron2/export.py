"""Trained detectors in the form that can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from omegaconf import DictConfig
from torch import Tensor

from ...deploy.exportable import Exportable
from ...errors import TwinsError
from ..checks import check_dataset_meta
from .checks import dataset_meta_of, dataset_name_of
from .evaluation import load_model
from .export_detection import ExportableRCNN, ExportableRetinaNet, reference_of
from .guards import building


def exportable(config: DictConfig, checkpoint: str | Path) -> Exportable:
    """Load a trained model in the form that can be exported.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: A detectron2 checkpoint for the model of the config.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used, or the model has a part that cannot be exported.
    """
    with building(config):
        config.train.device = "cpu"
        model, content = load_model(config, checkpoint)
        mapper = instantiate(config.dataloader.test.mapper)
        meta = content.get("dataset_meta") or dataset_meta_of(dataset_name_of(config.dataloader.test))
    return exportable_detector(model.eval(), mapper.augmentations.augs, meta, checkpoint)


def exportable_detector(model: Any, augmentations: list[Any], meta: Any, checkpoint: str | Path) -> Exportable:
    """Return a detector on the CPU in the form that can be exported; `augmentations` are those of its test data."""
    if type(model) not in (GeneralizedRCNN, RetinaNet):
        raise TwinsError(
            f"the model is a {type(model).__name__}, which cannot be exported: use a GeneralizedRCNN or a RetinaNet"
        )
    resizes = [step for step in augmentations if isinstance(step, ResizeShortestEdge)]
    if len(resizes) != 1 or len(augmentations) != 1:
        raise TwinsError(
            f"the test data of the config has the augmentations {augmentations}: use a single ResizeShortestEdge"
        )
    heads: Any = getattr(model, "roi_heads", model)
    check_dataset_meta(meta, checkpoint, heads.num_classes if meta["classes"] else None)
    limits = getattr(heads, "box_predictor", heads)
    masks = bool(getattr(heads, "mask_on", False))
    return Exportable(
        (ExportableRetinaNet if isinstance(model, RetinaNet) else ExportableRCNN)(model).eval(),
        reference_of(model),
        ("boxes", "scores", "labels", "masks") if masks else ("boxes", "scores", "labels"),
        {
            "kind": "detector",
            "engine": "detectron2",
            "classes": list(meta["classes"] or map(str, range(heads.num_classes))),
            "category_ids": list(meta["category_ids"] or range(heads.num_classes)),
            "masks": masks,
            "score_threshold": float(limits.test_score_thresh),
            "max_detections": int(
                model.max_detections_per_image if isinstance(model, RetinaNet) else limits.test_topk_per_image
            ),
            "thresholds": None,
            "resize": {"short": resizes[0].short_edge_length[-1], "long": resizes[0].max_size, "mode": "pillow"},
            # Of red, green and blue, in the units of the input, 0..255.
            "preprocessing": {
                "mean": _in_rgb(model, model.pixel_mean),
                "std": _in_rgb(model, model.pixel_std),
            },
        },
    )


def _in_rgb(model: Any, values: Tensor) -> list[float]:
    numbers: list[float] = values.flatten().tolist()
    return numbers[::-1] if model.input_format == "BGR" else numbers
