"""`twins-dense validate`: ImageNet's validation set, scored as the published numbers were."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError
from ..weights.catalog import CATALOG
from .options import find_device


@click.command("validate")
@click.option("--data", required=True, help="Validation set: wnid folders, a folder above `val`, or flat images.")
@click.option("--variant", help="One of the six; with --reproduce, only this one.")
@click.option("--weights", help="A file, or a name of `twins-dense weights list`.")
@click.option("--ground-truth", help="For flat images: LOC_val_solution.csv, Caffe's val.txt, or a wnid a line.")
@click.option("--subset", is_flag=True, help="Score the classes that are there where some of the 1000 are missing.")
@click.option(
    "--protocol",
    type=click.Choice(["official", "timm"]),
    default="official",
    show_default=True,
    help="official: short side 256; timm: 248 (crop 0.9). Then bicubic, centre crop 224.",
)
@click.option("--reproduce", is_flag=True, help="Score the published classifiers beside their published numbers.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="In each process.")
@click.option("--workers", default=min(4, os.cpu_count() or 1), show_default=True, type=click.IntRange(min=0))
@click.option("--device", help="A torch device.  [default: a GPU if there is one, else cpu]")
@click.option("--amp", type=click.Choice(["bf16"]), help="Run under autocast.")
@click.option("--compile", "compiled", is_flag=True, help="Run through torch.compile.")
@click.option("--out", help="New folder for metrics.json and a CSV of classes.  [default: work_dirs/validate/TIME]")
def command(
    data: str,
    variant: str | None,
    weights: str | None,
    ground_truth: str | None,
    subset: bool,
    protocol: str,
    reproduce: bool,
    batch_size: int,
    workers: int,
    device: str | None,
    amp: str | None,
    compiled: bool,
    out: str | None,
) -> None:
    """Score ImageNet classifiers: top-1, top-5 and loss, by class too.

    Images that can't be read are named, and left out of the totals. Under torchrun the processes share the images.

    \b
    Examples:
      twins-dense validate --data imagenet --variant svt_small --weights alt_gvt_small.pth
      twins-dense validate --data imagenet --variant svt_small --weights svt_small.in1k-timm --protocol timm
      twins-dense validate --data imagenet --reproduce
      torchrun --nproc_per_node=8 -m twins_dense validate --data imagenet --reproduce --amp bf16
    """
    import torch

    from .. import classification, create_classifier, get_spec, list_variants, load_weights
    from ..data.imagenet import read_samples
    from ..files import write_atomically
    from ..processes import joined_processes

    if reproduce == (weights is not None) or (variant is None and not reproduce):
        raise TwinsError("give either --variant and --weights, or --reproduce (then --variant chooses one of the six)")
    source = "timm" if protocol == "timm" else "mmpretrain"
    if reproduce:
        runs = [(name, f"{name}.in1k-{source}") for name in ([variant] if variant else list_variants())]
    else:
        runs = [(str(variant), str(weights))]
    for name, _ in runs:
        get_spec(name)
    folder = Path(out or Path("work_dirs") / "validate" / time.strftime("%Y%m%d_%H%M%S"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TwinsError(f"--out {str(folder)!r} is not empty: choose another")
    target = find_device(device)
    samples = read_samples(data, ground_truth, subset=subset)
    preprocessing = classification.PROTOCOLS[protocol]

    with joined_processes() as (rank, _):
        rows = []
        for name, file in runs:
            net = create_classifier(name)
            report = load_weights(net, file)
            net.to(target).eval()
            score = classification.score(
                torch.compile(net) if compiled else net,
                samples,
                preprocessing,
                device=target,
                batch_size=batch_size,
                num_workers=workers,
                amp=torch.bfloat16 if amp else None,
            )
            if rank != 0:
                continue
            rows.append(
                {
                    "variant": name,
                    "weights": file,
                    "report": str(report),
                    "protocol": protocol,
                    "images": score.num_images,
                    "classes": int(score.counts[:, 0].count_nonzero()),
                    "top1": score.top1,
                    "top5": score.top5,
                    "loss": score.loss,
                    "published": dict(CATALOG[file].scores) if file in CATALOG else {},
                    "images_per_second": score.num_images / score.seconds,
                    "device": str(target),
                    "amp": amp,
                    "compiled": compiled,
                    "unreadable": score.unreadable,
                }
            )
            classification.write_classes(score, folder / f"{name}.csv")
            write_atomically(folder / "metrics.json", json.dumps(rows, indent=1).encode() + b"\n")
            _say(rows[-1], reproduce)
        if rank == 0:
            if reproduce:
                _say_table(rows)
            click.echo(f"{folder} holds metrics.json and a CSV of classes")


def _say(row: dict[str, Any], briefly: bool) -> None:
    for line in row["unreadable"]:
        click.echo(f"left out: {line}", err=True)
    if briefly:
        return
    click.echo(row["report"])
    click.echo(f"{row['images']} images of {row['classes']} classes, {row['protocol']} protocol, {row['device']}")
    left_out = len(row["unreadable"])
    if left_out:
        click.echo(f"{left_out} more can't be read and are left out")
    click.echo(f"top-1 {row['top1']:.3f} %, top-5 {row['top5']:.3f} %, loss {row['loss']:.4f}{_published(row)}")
    click.echo(f"{row['images_per_second']:.1f} images/s, reading included")


def _published(row: dict[str, Any]) -> str:
    scores = ", ".join(f"{metric} {value:g} %" for metric, value in row["published"].items())
    return f" (published: {scores})" if scores else ""


def _say_table(rows: list[dict[str, Any]]) -> None:
    click.echo(f"{rows[0]['images']} images of {rows[0]['classes']} classes, {rows[0]['protocol']} protocol")
    click.echo(f"{'weights':28}{'top-1':>8}{'published':>11}{'top-5':>9}{'published':>11}{'loss':>9}{'images/s':>10}")
    for row in rows:
        published = row["published"]
        click.echo(
            f"{row['weights']:28}{row['top1']:8.3f}{published['top1']:11.3f}{row['top5']:9.3f}{published['top5']:11.3f}"
            f"{row['loss']:9.4f}{row['images_per_second']:10.1f}"
        )
