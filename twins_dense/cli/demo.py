"""`twins-dense demo`: draw a data set, train a Mask R-CNN on it, evaluate it, show it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError

_IMAGES = 8  # drawn
_SCORE = 0.7  # of the instances that are drawn


@click.command("demo")
@click.option("--out", default="demo", show_default=True, help="Folder for data, run and pictures.")
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(min=1), help="Training length.")
@click.option("--num-train", default=400, show_default=True, type=click.IntRange(min=4), help="Training images.")
def command(out: str, epochs: int, num_train: int) -> None:
    """Train a Mask R-CNN with a Twins-SVT backbone from scratch on a small data set drawn for it, evaluate it on
    held-out images and draw what it predicts. Takes some minutes on two CPU cores and needs no network.

    Leaves in OUT: `data-NUM_TRAIN` (the data set), `run-TIME` (checkpoints, log, metrics.json),
    `predictions-TIME.png` (ground truth beside predictions) and `curves-TIME.png` (loss and AP).

    \b
    Examples:
      twins-dense demo
      twins-dense demo --out /tmp/demo --epochs 1 --num-train 40
    """
    from mmengine.config import Config

    from ..data.toy import make_toy_coco
    from ..frameworks.mmengine import engine

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise TwinsError(f"--out {out!r} is a file: name a folder")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # One data set a size, so that a second run with other settings finds its own.
    data = make_toy_coco(folder / f"data-{num_train}", num_train=num_train, num_val=60, image_size=128, seed=0)
    run = folder / f"run-{stamp}"
    start = time.perf_counter()
    runner = engine.train(Config(demo_config(data, epochs)), run)
    minutes = (time.perf_counter() - start) / 60
    predictions, curves = folder / f"predictions-{stamp}.png", folder / f"curves-{stamp}.png"
    _draw_predictions(runner.model, runner.val_dataloader.dataset, predictions)
    scalars = next(run.glob("*/vis_data/scalars.json"))
    _draw_curves([json.loads(line) for line in scalars.read_text().splitlines()], curves)
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    click.echo(f"trained and evaluated in {minutes:.1f} minutes on 60 held-out images:")
    click.echo(f"  box  AP50 {metrics['coco/bbox_AP50']:.3f}   AP {metrics['coco/bbox_AP']:.3f}")
    click.echo(f"  mask AP50 {metrics['coco/segm_AP50']:.3f}   AP {metrics['coco/segm_AP']:.3f}")
    click.echo(f"data set     {data}")
    click.echo(f"checkpoints  {run}")
    click.echo(f"pictures     {predictions} (ground truth left, prediction right)")
    click.echo(f"curves       {curves}")


def demo_config(data: Path, epochs: int) -> dict[str, Any]:
    """A Mask R-CNN on a small Twins-SVT for images of 128x128, batches of 4, every setting sized for two CPU cores."""
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
            "checkpoint": {"type": "CheckpointHook", "max_keep_ckpts": 2, "backend_args": {"backend": "atomic"}},
        },
        "custom_hooks": [
            {"type": "IterationSeedHook"},
            {"type": "PlainCheckpointHook"},
            {"type": "MetricsFileHook"},
        ],
        "randomness": {"seed": 0},
    }


def _draw_predictions(model: Any, dataset: Any, path: Path) -> None:
    """A sheet with two columns of pairs: ground truth and, right of it, instances that score at least _SCORE."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms.v2.functional import resize
    from torchvision.utils import make_grid

    from ..data.coco_masks import decode_segmentation
    from ..data.drawing import draw_instances

    scale = 3
    model.eval()
    pictures = []
    for sample in (dataset[i] for i in range(min(_IMAGES, len(dataset)))):
        image, truth = sample["inputs"], sample["data_samples"]
        with torch.inference_mode():
            (found,) = model.val_step({"inputs": [image], "data_samples": [truth]})
        large = resize(image, [scale * image.shape[1], scale * image.shape[2]])
        boxes = torch.tensor([a["bbox"] for a in truth.annotations]).reshape(-1, 4)
        masks = [decode_segmentation(a["segmentation"], *image.shape[1:]) for a in truth.annotations]
        labels = torch.tensor([dataset.category_ids.index(a["category_id"]) for a in truth.annotations])
        for corners, label, mask, scores in (
            (
                torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
                labels,
                torch.from_numpy(np.stack(masks)),
                None,
            ),
            (found.boxes, found.labels, found.masks, found.scores),
        ):
            keep = slice(None) if scores is None else scores >= _SCORE
            pictures.append(
                draw_instances(
                    large,
                    corners[keep] * scale,
                    label[keep],
                    dataset.class_names,
                    scores=None if scores is None else scores[keep],
                    masks=resize(mask[keep].to(torch.uint8), list(large.shape[1:])) > 0,
                )
            )
    grid = make_grid(torch.stack(pictures), nrow=4, padding=6, pad_value=255)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)


def _draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """The training loss by iteration beside AP50 by epoch."""
    from matplotlib.figure import Figure

    losses = [record for record in records if "loss" in record]
    scores = [record for record in records if "coco/bbox_AP50" in record]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([record["step"] for record in losses], [record["loss"] for record in losses])
    left.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
    for key, name in (("coco/bbox_AP50", "box"), ("coco/segm_AP50", "mask")):
        right.plot([record["step"] for record in scores], [record[key] for record in scores], "o-", label=name)
    right.set(xlabel="epoch", ylabel="AP50, held-out images", ylim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
