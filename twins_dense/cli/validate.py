"""`twins-dense validate`: score classifiers on ImageNet in the same way as the published scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..distributed import is_first_process
from ..errors import TwinsError, one_line, requires_extra
from ..models.spec import get_spec
from .options import device_option, find_device, workers_option

_TITLES = f"{'weights':28}{'top-1':>8}{'published':>11}{'top-5':>9}{'published':>11}{'loss':>9}{'images/s':>10}"


@click.command("validate", short_help="Score classifiers on the validation set of ImageNet.")
@click.option(
    "--data", required=True, help="Validation set: class folders named by wnid, the folder above `val`, or flat images."
)
@click.option("--variant", help="One of the six; with --reproduce, validate only this one.")
@click.option("--weights", help="A file, or a name from `twins-dense weights list`.")
@click.option("--onnx", help="A classifier from `twins-dense export`, instead of --variant and --weights.")
@click.option("--ground-truth", help="For flat images: LOC_val_solution.csv, Caffe's val.txt, or one wnid per line.")
@click.option("--subset", is_flag=True, help="Accept that some of the 1000 classes are missing.")
@click.option(
    "--protocol",
    type=click.Choice(["official", "timm"]),
    default="official",
    show_default=True,
    help="official: resize the short side to 256; timm: to 248 (crop 0.9). Both bicubic, then centre crop 224.",
)
@click.option("--reproduce", is_flag=True, help="Score the published classifiers beside their published scores.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="In each process.")
@workers_option(4)
@device_option
@click.option("--amp", type=click.Choice(["bf16"]), help="Compute under autocast in bfloat16.")
@click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile.")
@click.option("--out", help="New folder for metrics.json, scores and reports.  [default: work_dirs/validate/TIME]")
@click.option("--no-report", is_flag=True, help="Do not write OUT/VARIANT/report.html.")
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
    no_report: bool,
) -> None:
    """Score ImageNet classifiers: top-1, top-5 and loss, in total and by class, with a report for each classifier.

    Unreadable images are listed and left out of the scores. Under torchrun, the processes share the images.

    \b
    Examples:
      twins-dense validate --data imagenet --variant svt_small --weights alt_gvt_small.pth
      twins-dense validate --data imagenet --variant svt_small --weights svt_small.in1k-timm --protocol timm
      twins-dense validate --data imagenet --onnx classifier.onnx
      twins-dense validate --data imagenet --reproduce
      torchrun --nproc_per_node=8 -m twins_dense validate --data imagenet --reproduce --amp bf16
    """
    from ..distributed import joined_processes
    from ..evaluation.record import RecordWriter

    with requires_extra("imagenet"):
        from ..imagenet.folders import read_samples
        from ..imagenet.validation import Validation, published_classifiers

    if onnx is not None:
        if variant or weights or reproduce or amp or compiled or device not in (None, "cpu"):
            raise TwinsError(
                "--onnx runs the file as it is, on the CPU: leave out --variant, --weights, --reproduce, --device, "
                "--amp and --compile"
            )
        device = "cpu"
    elif reproduce == (weights is not None) or (variant is None and not reproduce):
        raise TwinsError(
            "give either --variant and --weights, or --reproduce (then --variant selects one of the six), or --onnx"
        )
    if variant is not None:
        get_spec(variant)
    if onnx is not None:
        from ..deploy.runtimes import open_classifier

        from_onnx = open_classifier(onnx)
        runs = {from_onnx.variant: onnx}
    elif reproduce:
        published = published_classifiers(protocol)
        runs = published if variant is None else {variant: published[variant]}
    else:
        runs = {str(variant): str(weights)}
    target = find_device(device)
    validation = Validation(
        read_samples(data, ground_truth, subset=subset),
        protocol,
        Path(out or Path("work_dirs") / "validate" / time.strftime("%Y%m%d_%H%M%S")),
        device=target,
        batch_size=batch_size,
        num_workers=workers,
        amp=amp,
        compiled=compiled,
    )
    if is_first_process():
        click.echo(f"{len(validation.samples)} images, {protocol} protocol, {target}")
        if reproduce:
            click.echo(_TITLES)
    with joined_processes() as (rank, _):
        for name, file in runs.items():
            net, report = from_onnx[:2] if onnx else _torch_classifier(name, file, target, compiled)
            if is_first_process() and not reproduce:
                click.echo(report)
            config = {
                "model": {"type": "TwinsClassifier", "variant": name},
                "protocol": protocol,
                "amp": amp,
                "compiled": compiled,
            }
            about = _about(config, file, data, len(validation.samples), target)
            with RecordWriter(validation.folder / name, about, rank=rank) as writer:
                metrics = validation.run(net, name, file, report, on_image=writer.add)
            if is_first_process():
                click.echo(_table_row(metrics) if reproduce else _summary(metrics))
    if is_first_process():
        for line in metrics["unreadable"]:  # the same for every classifier
            click.echo(f"left out: {line}", err=True)
        reports = [] if no_report else _reports([validation.folder / name for name in runs])
        click.echo(f"{validation.folder} contains metrics.json and the scores by class")
        for path in reports:
            click.echo(f"report: {path}")


def _reports(folders: Sequence[Path]) -> list[Path]:
    """Write the reports of classifiers; if that fails, warn, because the scores are complete."""
    try:
        with requires_extra("report"):
            from ..evaluation.report.build import write_report
        return [write_report(folder) for folder in folders]
    except Exception as error:
        click.echo(f"warning: there is no report ({one_line(error)})", err=True)
        return []


def _about(config: dict[str, Any], weights: str, data: str, num_images: int, device: Any) -> Any:
    from ..evaluation.record import About, device_name, identity_of, package_versions
    from ..imagenet.classes import WNIDS, class_names
    from ..weights.download import fetch_weights

    return About(
        task="classification",
        classes=class_names(),
        num_images=num_images,
        identity=identity_of(fetch_weights(weights), config),
        checkpoint=weights,
        dataset=data,
        settings={"wnids": WNIDS, "protocol": config["protocol"]},
        config=config,
        versions=package_versions("torchvision"),
        device=device_name(device),
    )


def _torch_classifier(variant: str, weights: str, device: Any, compiled: bool) -> tuple[Any, str]:
    import torch

    from .. import create_classifier, load_weights

    net = create_classifier(variant)
    report = load_weights(net, weights)
    net.to(device).eval()
    return torch.compile(net) if compiled else net, str(report)


def _summary(metrics: dict[str, Any]) -> str:
    published = ", ".join(f"{name} {value:g} %" for name, value in metrics["published"].items())
    return (
        f"{metrics['images']} images of {metrics['classes']} classes, "
        f"{len(metrics['unreadable'])} unreadable images left out\n"
        f"top-1 {metrics['top1']:.3f} %, top-5 {metrics['top5']:.3f} %, loss {metrics['loss']:.4f}"
        + (f" (published: {published})" if published else "")
        + f"\n{metrics['images_per_second']:.1f} images/s, including reading"
    )


def _table_row(metrics: dict[str, Any]) -> str:
    published = metrics["published"]
    return (
        f"{metrics['weights']:28}{metrics['top1']:8.3f}{published['top1']:11.3f}"
        f"{metrics['top5']:9.3f}{published['top5']:11.3f}"
        f"{metrics['loss']:9.4f}{metrics['images_per_second']:10.1f}"
    )
