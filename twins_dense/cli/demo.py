"""`twins-dense demo`: train, evaluate and draw a small Mask R-CNN."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import requires_extra


@click.command("demo", short_help="Train a small Mask R-CNN and show what it finds.")
@click.option("--out", default="demo", show_default=True, help="Folder for the data set, the run and the pictures.")
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(min=1), help="Number of epochs.")
@click.option("--num-train", default=400, show_default=True, type=click.IntRange(min=4), help="Training images.")
def command(out: str, epochs: int, num_train: int) -> None:
    """Train a Mask R-CNN with a Twins-SVT backbone from scratch on a small drawn data set, evaluate it on validation
    images, draw its predictions and write a report. This takes a few minutes on two CPU cores and needs no network.

    OUT then contains `data-NUM_TRAIN` (the data set), `config-TIME.py` (the config), `run-TIME` (checkpoints, log,
    metrics.json and report.html), `predictions-TIME.png` (ground truth beside predictions) and `curves-TIME.png` (loss
    and AP50).

    \b
    Examples:
      twins-dense demo
      twins-dense demo --out /tmp/demo --epochs 1 --num-train 40
    """
    with requires_extra("detection"):
        from ..frameworks import console
        from ..inference.demo import run_demo

    console.show_on(sys.stdout)
    result = run_demo(Path(out), epochs=epochs, num_train=num_train)
    click.echo(f"trained and evaluated in {result.minutes:.1f} minutes on {result.num_val} validation images:")
    for kind, key in (("box ", "bbox"), ("mask", "segm")):
        ap50, ap = result.metrics[f"coco/{key}_AP50"], result.metrics[f"coco/{key}_AP"]
        click.echo(f"  {kind} AP50 {ap50:.3f}   AP {ap:.3f}")
    click.echo(f"data set     {result.data}")
    click.echo(f"config       {result.config}")
    click.echo(f"checkpoints  {result.run}")
    click.echo(f"pictures     {result.predictions} (ground truth left, prediction right)")
    click.echo(f"curves       {result.curves}")
    click.echo(f"report       {result.report} (open it in a browser)")
