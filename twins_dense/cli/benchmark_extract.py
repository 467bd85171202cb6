"""`twins-dense benchmark extract`: how much of the bare model's speed is left, and where the time goes."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import TwinsError
from .options import device_option, find_device, parse_levels

if TYPE_CHECKING:
    import torch

_NUM_BARE = 128  # images of a round that the model alone computes


@click.command("extract", short_help="Extraction beside the bare model.")
@click.argument("images", nargs=-1, required=True)
@click.option("--variant", default="svt_small", show_default=True, help="One of the six; its weights are random.")
@click.option("--levels", default="c2,c3,c4,c5", show_default=True, help="Which levels.")
@click.option("--num-images", type=click.IntRange(1), help="Repeat the images until there are this many.")
@click.option("--size", default=448, show_default=True, help="Side of the square in pixels.")
@click.option("--pool", type=click.Choice(["none", "mean"]), default="none", help="mean: vectors, no maps.")
@click.option("--dtype", default="float32", show_default=True, help="Of what is written.")
@click.option("--chunk", default=16, show_default=True, type=click.IntRange(min=1), help="Images at a time.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=0), help="Processes that read images.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Pairs of runs.")
@device_option
@click.option("--amp", is_flag=True, help="Compute under autocast in bfloat16.")
@click.option("--scratch", help="Folder of a disk with room for the features.  [default: the system's]")
def extract_command(
    images: tuple[str, ...],
    variant: str,
    levels: str,
    num_images: int | None,
    size: int,
    pool: str,
    dtype: str,
    chunk: int,
    workers: int,
    rounds: int,
    device: str | None,
    amp: bool,
    scratch: str | None,
) -> None:
    """Time the bare model and the whole extraction of IMAGES in turn, and show how busy the processor's cores are.

    The bare model computes the same shapes from memory. What counts is the ratio within a pair.

    \b
    Examples:
      twins-dense benchmark extract photos/ --num-images 500 --pool mean
      twins-dense benchmark extract photos/ --num-images 500 --rounds 1
    """
    from .. import create_backbone
    from ..data.image_lists import ImageList, list_images
    from ..features import needed_packages
    from ..features.prepare import Protocol

    with needed_packages():
        from ..features.extract import extract
        from ..features.model import Settings

    found = list_images(images)
    count = num_images or len(found.paths)
    paths = [found.paths[i % len(found.paths)] for i in range(count)]
    found = ImageList([f"{path}#{i}" for i, path in enumerate(paths)], paths, found.upright)
    settings = Settings(Protocol("crop", size), pool == "none", pool == "mean", dtype, amp, chunk)
    target = find_device(device)
    net = create_backbone(variant, out_indices=parse_levels(levels, variant), level_norm=False).to(target).eval()
    if scratch is not None and not Path(scratch).is_dir():
        raise TwinsError(f"--scratch {scratch!r}: no such folder; make it first")

    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    click.echo(f"{variant}, {count} images of {size}x{size}, chunks of {chunk}, {target}, {num_cores} cores")
    click.echo(f"{'bare/s':>8}{'extract/s':>11}{'ratio':>8}{'cores busy':>12}   seconds by stage, which overlap")
    _bare_rate(net, size, chunk, chunk, amp)  # warms up
    ratios = []
    for _ in range(rounds):
        bare = _bare_rate(net, size, chunk, min(_NUM_BARE, count), amp)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            start = _processor_seconds()
            report = extract(
                net,
                found,
                Path(folder) / "features",
                settings,
                weights_sha256="",
                device=target,
                num_workers=workers,
            )
            busy = (_processor_seconds() - start) / report.seconds["total"] / num_cores
        if report.unreadable:
            raise TwinsError(f"{report.unreadable[0]}: unreadable; give images that can be read")
        rate = report.num_done / report.seconds["total"]
        ratios.append(rate / bare)
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
        click.echo(f"{bare:8.2f}{rate:11.2f}{ratios[-1]:8.3f}{busy:12.1%}   {stages}")
    own, child = (resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    click.echo(
        f"extract / bare: median {statistics.median(ratios):.3f}; peak memory {own} MiB"
        + (f", each worker {child} MiB" if workers else "")
    )


def _bare_rate(net: torch.nn.Module, size: int, chunk: int, num_images: int, amp: bool) -> float:
    """Images a second of the model alone."""
    import torch

    device = next(net.parameters()).device
    images = torch.randn(chunk, 3, size, size, device=device)
    num_chunks = -(-num_images // chunk)
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for _ in range(num_chunks):
            levels: Any = net(images)
    levels[-1].sum().item()  # waits for a GPU
    return num_chunks * chunk / (time.perf_counter() - start)


def _processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
