"""`twins-dense validate`: ImageNet's validation set, scored as the published numbers were."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError
from ..weights.catalog import CATALOG
from .options import device_option, find_device, workers_option


@click.command("validate")
@click.option("--data", required=True, help="Validation set: wnid folders, a folder above `val`, or flat images.")
@click.option("--variant", help="One of the six; with --reproduce, only this one.")
@click.option("--weights", help="A file, or a name of `twins-dense weights list`.")
@click.option("--onnx", help="A classifier of `twins-dense export`, in the place of --variant and --weights.")
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
@workers_option(4)
@device_option
@click.option("--amp", type=click.Choice(["bf16"]), help="Run under autocast.")
@click.option("--compile", "compiled", is_flag=True, help="Run through torch.compile.")
@click.option("--out", help="New folder for metrics.json and a CSV of classes.  [default: work_dirs/validate/TIME]")
def command(
    data: str,
    variant: str | None,
    weights: str | None,
    onnx: str | None,
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
      twins-dense validate --data imagenet --onnx classifier.onnx
      twins-dense validate --data imagenet --reproduce
      torchrun --nproc_per_node=8 -m twins_dense validate --data imagenet --reproduce --amp bf16
    """
    import torch

    from .. import get_spec, list_variants
    from ..atomic import write_atomically
    from ..distributed import joined_processes
    from ..imagenet import scoring as classification
    from ..imagenet.folders import read_samples
    from ..weights.download import fetch_weights, sha256_of

    if onnx is not None:
        if variant or weights or reproduce or amp or compiled or device not in (None, "cpu"):
            raise TwinsError(
                "--onnx runs a file on the CPU as it is: give it without a model, --device, --amp, --compile"
            )
        device = "cpu"
    elif reproduce == (weights is not None) or (variant is None and not reproduce):
        raise TwinsError(
            "give either --variant and --weights, or --reproduce (then --variant chooses one of the six), or --onnx"
        )
    source = "timm" if protocol == "timm" else "mmpretrain"
    if reproduce:
        runs = [(name, f"{name}.in1k-{source}") for name in ([variant] if variant else list_variants())]
    elif onnx is not None:
        from_onnx, onnx_report, onnx_variant = _onnx_classifier(onnx)
        runs = [(onnx_variant, onnx)]
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
        if rank == 0:
            click.echo(f"{len(samples)} images, {protocol} protocol, {target}")
            if reproduce:
                click.echo(_TITLES)
        rows: list[dict[str, Any]] = []
        for name, file in runs:
            if onnx is None:
                net, report = _torch_classifier(name, file, target, compiled)
            else:
                net, report = from_onnx, onnx_report
            if rank == 0 and not reproduce:
                click.echo(report)
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)  # before the work: not every folder can be made
            score = classification.score(
                net,
                samples,
                preprocessing,
                device=target,
                batch_size=batch_size,
                num_workers=workers,
                amp=torch.bfloat16 if amp else None,
            )
            if rank != 0:
                continue
            spec = CATALOG.get(file)
            row = {
                "variant": name,
                "weights": file,
                "sha256": sha256_of(fetch_weights(file)),
                "report": report,
                "protocol": protocol,
                "images": score.num_images,
                "classes": int(score.counts[:, 0].count_nonzero()),
                "top1": score.top1,
                "top5": score.top5,
                "loss": score.loss,
                "published": dict(spec.scores) if spec and spec.preprocessing == preprocessing else {},
                "images_per_second": score.num_images / score.seconds,
                "device": str(target),
                "amp": amp,
                "compiled": compiled,
                "unreadable": score.unreadable,
            }
            rows.append(row)
            click.echo(_table_row(row) if reproduce else _lines(row))
            classification.write_classes(score, folder / f"{name}.csv")
            write_atomically(folder / "metrics.json", json.dumps(rows, indent=1).encode() + b"\n")
        if rank == 0:
            for line in rows[0]["unreadable"]:
                click.echo(f"left out: {line}", err=True)
            click.echo(f"{folder} holds metrics.json and a CSV of classes")


def _torch_classifier(name: str, weights: str, device: Any, compiled: bool) -> tuple[Any, str]:
    """A classifier with weights, and what was loaded."""
    import torch

    from .. import create_classifier, load_weights

    net = create_classifier(name)
    report = load_weights(net, weights)
    net.to(device).eval()
    return torch.compile(net) if compiled else net, str(report)


def _onnx_classifier(file: str) -> tuple[Any, str, str]:
    """A classifier in a file of `twins-dense export`: the function, what the file says, the variant."""
    from ..deploy.export import read_onnx

    run, metadata = read_onnx(file)
    if metadata["kind"] != "classifier" or metadata["num_classes"] != 1000:
        raise TwinsError(f"--onnx {file!r} is no classifier of 1000 classes: export one with --classifier")
    report = f"{file} ({metadata['variant']}), run by onnxruntime"
    return lambda images: run(images)[0], report, metadata["variant"]


def _lines(row: dict[str, Any]) -> str:
    published = ", ".join(f"{metric} {value:g} %" for metric, value in row["published"].items())
    return (
        f"{row['images']} images of {row['classes']} classes, {len(row['unreadable'])} can't be read and are left out\n"
        f"top-1 {row['top1']:.3f} %, top-5 {row['top5']:.3f} %, loss {row['loss']:.4f}"
        + (f" (published: {published})" if published else "")
        + f"\n{row['images_per_second']:.1f} images/s, reading included"
    )


_TITLES = f"{'weights':28}{'top-1':>8}{'published':>11}{'top-5':>9}{'published':>11}{'loss':>9}{'images/s':>10}"


def _table_row(row: dict[str, Any]) -> str:
    published = row["published"]
    return (
        f"{row['weights']:28}{row['top1']:8.3f}{published['top1']:11.3f}{row['top5']:9.3f}{published['top5']:11.3f}"
        f"{row['loss']:9.4f}{row['images_per_second']:10.1f}"
    )
