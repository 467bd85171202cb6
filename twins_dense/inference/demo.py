"""The demo: train a small Mask R-CNN on a toy data set, evaluate it, and draw its predictions and training curves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data.coco import load_coco
from ..data.drawing import coco_truth, draw_comparison, side_by_side
from ..data.toy import make_toy_coco
from ..errors import TwinsError
from ..evaluation import metrics_file
from ..frameworks import open_config
from .load import load_model
from .model import Model
from .run_report import report_run

_NUM_DRAWN = 8  # number of images in the picture
_MIN_SCORE = 0.7  # score threshold of the predictions in the picture


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        data: Folder of the data set.
        num_val: Number of validation images.
        config: Config of the training run.
        run: Work directory of the training run.
        metrics: Final metrics of the run, such as `coco/bbox_AP50`, in 0..1.
        minutes: Duration of training and evaluation.
        predictions: Picture of the ground truth beside the predictions.
        curves: Plot of the training loss and AP50.
        report: Report of the run.
    """

    data: Path
    num_val: int
    config: Path
    run: Path
    metrics: Mapping[str, float]
    minutes: float
    predictions: Path
    curves: Path
    report: Path


def run_demo(folder: Path, *, epochs: int, num_train: int, num_val: int = 60) -> DemoResult:
    """Train and evaluate the demo's model, and draw the results.

    Args:
        folder: Folder for the data set, the run and the pictures. An existing data set of the same size is reused.
        epochs: Number of epochs.
        num_train: Number of training images.
        num_val: Number of validation images.

    Raises:
        TwinsError: if `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise TwinsError(f"--out {str(folder)!r} is a file: choose a folder")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # The name contains the size, so that a demo with another size gets its own data set.
    data = make_toy_coco(folder / f"data-{num_train}", num_train=num_train, num_val=num_val, image_size=128, seed=0)
    run = folder / f"run-{stamp}"
    config = folder / f"config-{stamp}.py"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in demo_config(data, epochs).items()))
    start = time.perf_counter()
    engine, loaded = open_config(config)
    engine.train(loaded, run)
    minutes = (time.perf_counter() - start) / 60
    predictions, curves = folder / f"predictions-{stamp}.png", folder / f"curves-{stamp}.png"
    draw_predictions(load_model(run), data, predictions)
    scalars = next(run.glob("*/vis_data/scalars.json"))
    draw_curves([json.loads(line) for line in scalars.read_text().splitlines()], curves)
    metrics = metrics_file.read_metrics(run)
    report = report_run(*open_config(config), run)
    assert report is not None  # there is one process
    return DemoResult(data, num_val, config, run, metrics, minutes, predictions, curves, report)


def demo_config(data: Path, epochs: int) -> dict[str, Any]:
    """Return the config of a Mask R-CNN on a small Twins-SVT, for images of 128x128 and two CPU cores.

    The pyramid has 128 channels, and the number of proposals is about a quarter of the usual one. The learning rate is
    1e-3 at a batch size of 4, with a linear warm-up over 40 iterations and a cosine decay to 1e-5.
    """
    dataset = {"type": "CocoDetectionDataset", "data_root": str(data)}
    train_dataset = {
        **dataset,
        "ann_file": "annotations/instances_train2017.json",
        "image_dir": "train2017",
        "training": True,
        "with_masks": True,
        "transforms": [{"type": "RandomHorizontalFlip"}, {"type": "RandomVerticalFlip"}],
    }
    val_dataset = {
        **dataset,
        "ann_file": "annotations/instances_val2017.json",
        "image_dir": "val2017",
        "training": False,
        "with_masks": False,
    }
    backbone = {
        "variant": {
            "name": "svt_demo",
            "dims": (32, 64, 128, 256),
            "num_heads": (1, 2, 4, 8),
            "mlp_ratios": (4, 4, 4, 4),
            "depths": (2, 2, 4, 2),
            "sr_ratios": (8, 4, 2, 1),
            "window_size": 7,
        },
        "drop_path_rate": 0.0,
    }
    return {
        "default_scope": "mmengine",
        "custom_imports": {"imports": ["twins_dense.frameworks.mmengine.detectors"]},
        "model": {
            "type": "TwinsMaskRCNN",
            "backbone": backbone,
            "num_classes": 3,
            "min_size": 128,
            "max_size": 128,
            "fpn_channels": 128,
            "options": {
                "rpn_pre_nms_top_n_train": 500,
                "rpn_post_nms_top_n_train": 200,
                "rpn_pre_nms_top_n_test": 200,
                "rpn_post_nms_top_n_test": 100,
                "box_batch_size_per_image": 32,
            },
        },
        "train_dataloader": {
            "batch_size": 4,
            "num_workers": 0,
            "sampler": {"type": "SeededSampler", "shuffle": True},
            "dataset": train_dataset,
        },
        "val_dataloader": {
            "batch_size": 4,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": val_dataset,
        },
        "val_evaluator": {"type": "CocoMetric", "iou_types": ("bbox", "segm")},
        "train_cfg": {"by_epoch": True, "max_epochs": epochs},
        "val_cfg": {},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
            "clip_grad": {"max_norm": 10.0},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 40},
            {
                "type": "CosineAnnealingLR",
                "by_epoch": True,
                "begin": 0,
                "end": epochs,
                "eta_min": 1e-5,
                "convert_to_iter_based": True,
            },
        ],
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 10},
            "checkpoint": {"type": "CheckpointHook", "max_keep_ckpts": 2},
        },
        "randomness": {"seed": 0},
    }


def draw_predictions(model: Model, data: Path, path: Path) -> None:
    """Draw the ground truth and the predictions of the first validation images side by side."""
    coco = load_coco(data / "annotations" / "instances_val2017.json", data / "val2017", indices=_NUM_DRAWN)
    pictures = []
    found = model.predict([image.path for image in coco.images], score=_MIN_SCORE)
    for image, detections in zip(coco.images, found, strict=True):
        truth = coco_truth(image.annotations, coco.category_ids, image.height, image.width, with_masks=True)
        pictures.append(draw_comparison(detections.image, truth, vars(detections.instances), model.classes))
    rows = [side_by_side(*pictures[i : i + 2]) for i in range(0, len(pictures), 2)]
    Image.fromarray(np.concatenate(rows)).save(path)


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the training loss by iteration beside AP50 by epoch, from the logged scalars of a run."""
    losses = [record for record in records if "loss" in record]
    scores = [record for record in records if "coco/bbox_AP50" in record]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([record["step"] for record in losses], [record["loss"] for record in losses])
    left.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
    for key, name in (("coco/bbox_AP50", "box"), ("coco/segm_AP50", "mask")):
        right.plot([record["step"] for record in scores], [record[key] for record in scores], "o-", label=name)
    right.set(xlabel="epoch", ylabel="AP50, validation images", ylim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
