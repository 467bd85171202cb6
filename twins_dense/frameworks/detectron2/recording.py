"""Record an evaluation image by image, so that it can be resumed, and so that a report can be made from it later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ...evaluation.folders import has_record
from ...evaluation.record import (
    About,
    Record,
    RecordWriter,
    device_name,
    identity_of,
    named_if_broken,
    package_versions,
    read_record,
)
from .backbone import logger
from .cfg_node import read_dump
from .checks import dataset_name_of
from .detection_evaluator import DetectionEvaluator, coco_results, tasks_of
from .stored import plain_data, to_data

_PACKAGES = ("detectron2", "torchvision", "hotcoco", "pycocotools", "numpy")


def evaluation_identity(config: DictConfig, checkpoint: str | Path) -> str:
    """Return the identity of an evaluation: a hash of the checkpoint and of the settings that its results depend on."""
    data = plain_data(config)
    test = {key: value for key, value in data["dataloader"]["test"].items() if key != "num_workers"}
    settings: dict[str, Any] = {"model": data["model"], "test": test, "evaluator": data["dataloader"]["evaluator"]}
    for node in (settings["model"], test.get("mapper")):
        if isinstance(node, dict) and "cfg" in node:  # a translated YAML file
            node["cfg"] = _without_run_settings(node["cfg"])
    return identity_of(checkpoint, settings)


def finished_record(folder: Path, identity: str) -> Record | None:
    """Return the record in a folder if it is the complete record of this evaluation, or else `None`."""
    if not has_record(folder):
        return None
    record = read_record(folder)
    return record if record.about.identity == identity and record.is_complete else None


def recorded_results(record: Record, config: DictConfig) -> dict[str, dict[str, float]]:
    """Return the results of `DetectionEvaluator` for a record of the config."""
    with named_if_broken(record.folder):
        settings = record.about.settings
        return coco_results(
            record.entries,
            record.about.classes,
            settings["category_ids"],
            with_masks="segm" in settings["iou_types"],
            max_dets=settings["max_dets"],
            backend=config.dataloader.evaluator.get("backend", "hotcoco"),
        )


def start_recording(
    config: DictConfig,
    checkpoint: str,
    model: nn.Module,
    evaluator: DetectionEvaluator,
    *,
    identity: str,
    num_images: int,
) -> RecordWriter:
    """Return a writer for the images that this process evaluates, and make the evaluator use it.

    Args:
        config: The config that is evaluated.
        checkpoint: Path of the checkpoint.
        model: The model.
        evaluator: The evaluator of the config.
        identity: The `evaluation_identity`.
        num_images: Number of images of the data set.

    Raises:
        TwinsError: If the work directory contains the record of another evaluation.
    """
    evaluator.with_masks = "segm" in tasks_of(model)
    about = About(
        task="detection",
        classes=evaluator.meta["classes"],
        num_images=num_images,
        identity=identity,
        checkpoint=checkpoint,
        dataset=dataset_name_of(config.dataloader.test),
        settings={
            "category_ids": evaluator.meta["category_ids"],
            "iou_types": ["bbox", "segm"] if evaluator.with_masks else ["bbox"],
            "max_dets": evaluator.max_dets,
        },
        config=_storable(config),
        engine="detectron2",
        versions=package_versions(*_PACKAGES),
        device=device_name(config.train.device),
    )
    evaluator.writer = RecordWriter(Path(config.train.output_dir), about, rank=comm.get_rank())
    return evaluator.writer


def _storable(config: DictConfig) -> dict[str, Any]:
    try:
        return to_data(config)
    except Exception as error:  # whatever the config contains, it can be evaluated
        logger.debug(f"The record does not contain the config: {error}")
        return {}


def _without_run_settings(dump: str) -> str:
    """Return the part of a dumped CfgNode that the results of an evaluation depend on."""
    cfg = read_dump(dump)
    cfg.MODEL.DEVICE = ""
    return CfgNode({name: cfg[name] for name in ("INPUT", "MODEL", "TEST")}).dump()
