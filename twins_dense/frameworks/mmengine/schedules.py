"""Fit the schedule of an MMEngine config to a number of epochs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...data.coco import is_instance, read_annotation_file
from ...errors import TwinsError, one_line
from .. import recipes


def world_size() -> int:
    """Return the number of processes that torchrun has started, or 1."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def total_batch_size(config: Config) -> int:
    """Return the number of training images per iteration, over all processes."""
    return config.train_dataloader.batch_size * world_size()


def iterations_per_epoch(config: Config) -> int:
    """Return the number of iterations in which every training image is seen once."""
    return math.ceil(num_training_images(config) / total_batch_size(config))


def num_iterations(config: Config) -> int:
    """Return the number of iterations of the whole run."""
    if config.train_cfg.get("max_iters"):
        return config.train_cfg.max_iters
    return config.train_cfg.max_epochs * iterations_per_epoch(config)


def shorten_warm_up(config: Config) -> None:
    """Limit the warm-up of a config to a tenth of its run, for data sets that are smaller than the published one."""
    total = num_iterations(config)
    for scheduler in _schedulers(config):
        if scheduler.type == "LinearLR" and not scheduler.get("by_epoch", True):
            scheduler.end = recipes.warmup_iterations(scheduler.end, total)


def set_epochs(config: Config, epochs: int) -> None:
    """Make a run take a number of passes over the training images; warm-up and decay change with it.

    A run that is counted in epochs stays one, and a run that is counted in iterations gets as many iterations as the
    epochs have. The decay keeps its shape; it is set in iterations, because few epochs could not be divided. The
    warm-up keeps its length, but takes at most a tenth of the run.

    Raises:
        TwinsError: if the number of training images cannot be found out.
    """
    train_cfg = config.train_cfg
    per_epoch, before = iterations_per_epoch(config), num_iterations(config)
    epochs_before, total = train_cfg.get("max_epochs"), epochs * per_epoch
    train_cfg.update({"max_epochs": epochs} if epochs_before else {"max_iters": total})
    schedulers = _schedulers(config)
    warm_up = next((s.end for s in schedulers if s.type == "LinearLR" and not s.get("by_epoch", True)), None)

    def moved(position: int, length: int) -> int:
        if position == warm_up and length == before:
            return recipes.warmup_iterations(position, total)
        return max(1, round(position / length * total))

    for scheduler in schedulers:
        length = epochs_before if scheduler.get("by_epoch", True) else before
        for name in ("begin", "end", "T_max"):
            if scheduler.get(name):
                scheduler[name] = moved(scheduler[name], length)
        if "milestones" in scheduler:
            scheduler.milestones = [moved(milestone, length) for milestone in scheduler.milestones]
        scheduler.by_epoch = False
    _set_intervals(config, per_epoch)


def _schedulers(config: Config) -> list[Any]:
    schedulers = config.get("param_scheduler") or []
    return schedulers if isinstance(schedulers, list) else [schedulers]


def num_training_images(config: Config) -> int:
    """Count the images that a config trains on, without opening them.

    Raises:
        TwinsError: if the annotation file or the folder cannot be read, or there are no images.
    """
    dataset = config.train_dataloader.dataset
    try:
        count = _num_pairs(dataset) if "data_prefix" in dataset else _num_annotated_images(dataset)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error) if isinstance(error, TwinsError) else f"{type(error).__name__}: {one_line(error)}"
        raise TwinsError(
            f"cannot count the training images, on which the schedule depends: {reason}; check --data, "
            "--data-root and train_dataloader.dataset"
        ) from None
    count = min(count, dataset.get("indices") or count)
    if not count:
        raise TwinsError("there are no training images: check --data, --data-root and train_dataloader.dataset")
    return count


def _num_annotated_images(dataset: Any) -> int:
    path = Path(dataset.get("data_root") or "") / dataset.ann_file
    content = read_annotation_file(path, ("images", "annotations"))
    if not dataset.get("filter_empty", True):
        return len(content["images"])
    return len({annotation["image_id"] for annotation in filter(is_instance, content["annotations"])})


def _num_pairs(dataset: Any) -> int:
    root = Path(dataset.get("data_root") or "")
    if dataset.get("ann_file"):
        lines = (root / dataset.ann_file).read_text(encoding="utf-8").splitlines()
        return sum(bool(line.strip()) for line in lines)
    suffix = dataset.get("img_suffix", ".jpg")
    return sum(name.endswith(suffix) for _, _, names in os.walk(root / dataset.data_prefix.img_path) for name in names)


def _set_intervals(config: Config, per_epoch: int) -> None:
    """Evaluate and save about ten times per run, or more often in long runs, and log about a hundred times."""
    epochs, hooks = config.train_cfg.get("max_epochs"), config.get("default_hooks", {})
    total = epochs * per_epoch if epochs else config.train_cfg.max_iters
    interval = recipes.evaluation_interval(epochs, per_epoch) if epochs else math.ceil(total / recipes.NUM_EVALUATIONS)
    config.train_cfg.val_interval = interval
    checkpoint, logger = hooks.get("checkpoint"), hooks.get("logger")
    if checkpoint:
        checkpoint.interval = interval if checkpoint.get("by_epoch", True) or not epochs else interval * per_epoch
    if logger:
        logger.interval = recipes.log_interval(logger.get("interval", 10), total)
