"""Options of a training run that mean the same in both frameworks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Recipe = Literal["published", "small-data"]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. `None` keeps the setting of the config.

    Attributes:
        recipe: "small-data" replaces the published schedule by one for a few dozen to a few thousand images: gradient
            clipping, a longer warm-up, a cosine decay, fewer sampled proposals, and a learning rate for its batch size.
        epochs: Number of passes over the training images. Warm-up and decay of the learning rate scale with it.
        size: Short side of detectors' resized images, or side of segmentors' square crops, in pixels.
        batch: Number of images per iteration, over all processes.
        lr: Learning rate at that batch size.
        max_dets: Largest number of detections per image, for the detector and for the metric.
        anchor_sizes: One anchor size per level of the pyramid, from fine to coarse, in pixels of the resized image.
        weights: ImageNet weights of the backbone: a file, or a name of the catalog.
        init: Checkpoint of a whole detector or segmentor to start from; heads of other classes start afresh.
        freeze: Part of the backbone that is not trained: "backbone", or "stages:N" for its first N stages.
    """

    recipe: Recipe | None = None
    epochs: int | None = None
    size: int | None = None
    batch: int | None = None
    lr: float | None = None
    max_dets: int | None = None
    anchor_sizes: tuple[float, ...] | None = None
    weights: str | None = None
    init: str | Path | None = None
    freeze: str | None = None


@dataclass(frozen=True)
class MonitoringOptions:
    """Monitoring of a run: the metrics, pictures and checkpoints that it records.

    Attributes:
        best: Metric whose best checkpoint is kept, such as `coco/segm_AP` or `mIoU`; `None` chooses mask AP, box AP or
            mIoU, by what the run evaluates.
        ema: Whether to evaluate and save an exponential moving average of the weights.
        patience: Number of evaluations without a better value of `best` after which the run stops; `None` never stops.
        tensorboard: Whether to write TensorBoard events.
        val_loss: Whether to compute the losses on the validation images as well.
        samples: Number of validation images to draw at each evaluation.
    """

    best: str | None = None
    ema: bool = False
    patience: int | None = None
    tensorboard: bool = False
    val_loss: bool = False
    samples: int = 4
