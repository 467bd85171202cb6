"""`twins-dense benchmark extract`: compare the speed of an extraction with that of the bare model."""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from ..errors import TwinsError
from ..features import DTYPES
from .options import allow_outside_option, device_option, find_device, parse_levels

_NUM_BARE = 128  # images per round for the model alone
_NUM_CHUNKS = 4  # chunks on which each stage is measured alone


@click.command("extract", short_help="Extraction beside the bare model.")
@click.argument("images", nargs=-1, required=True)
@allow_outside_option
@click.option("--variant", default="svt_small", show_default=True, help="One of the six; its weights are random.")
@click.option("--levels", default="c2,c3,c4,c5", show_default=True, help="Levels to extract.")
@click.option("--num-images", type=click.IntRange(1), help="Repeat the images until there are this many.")
@click.option("--size", default=448, show_default=True, help="Side of the square in pixels.")
@click.option("--pool", type=click.Choice(["none", "mean"]), default="none", help="mean: write vectors, not maps.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Type of the features.")
@click.option("--chunk", default=16, show_default=True, type=click.IntRange(min=1), help="Images per chunk.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=0), help="Data loader workers.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Pairs of runs.")
@device_option
@click.option("--amp", is_flag=True, help="Compute under autocast in bfloat16.")
@click.option("--scratch", help="Folder on a disk with room for the features.  [default: the system's]")
def extract_command(
    images: tuple[str, ...],
    allow_outside: bool,
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
    """Time the bare model and the whole extraction of IMAGES in turn, then each stage of the extraction alone.

    The bare model computes images of the same size from memory. The result is the median over all pairs of the ratio
    of the two speeds. "Cores busy" is the fraction of the processor time that an extraction uses.

    \b
    Examples:
      twins-dense benchmark extract photos/ --num-images 500 --pool mean
      twins-dense benchmark extract photos/ --num-images 500 --rounds 1
    """
    from .. import create_backbone
    from ..data.image_lists import ImageList, list_images
    from ..features import optional_packages
    from ..features.prepare import Protocol

    with optional_packages():
        from ..features.benchmark import bare_rate, extraction_rate, num_cores, peak_memory, stage_rates
        from ..features.model import Settings

    found = list_images(images, allow_outside=allow_outside)
    count = num_images or len(found.paths)
    paths = [found.paths[i % len(found.paths)] for i in range(count)]
    found = ImageList([f"{path}#{i}" for i, path in enumerate(paths)], paths, found.upright)
    settings = Settings(Protocol("crop", size), pool == "none", pool == "mean", dtype, amp, chunk)
    target = find_device(device)
    net = create_backbone(variant, out_indices=parse_levels(levels, variant), level_norm=False).to(target).eval()
    if scratch is not None and not Path(scratch).is_dir():
        raise TwinsError(f"--scratch {scratch!r}: no such folder; create it first")

    click.echo(f"{variant}, {count} images of {size}x{size}, chunks of {chunk}, {target}, {num_cores()} cores")
    click.echo(f"{'bare/s':>8}{'extract/s':>11}{'ratio':>8}{'cores busy':>12}")
    bare_rate(net, settings, chunk)  # warms up
    ratios = []
    for _ in range(rounds):
        bare = bare_rate(net, settings, min(_NUM_BARE, count))
        rate, busy = extraction_rate(net, found, settings, num_workers=workers, scratch=scratch)
        ratios.append(rate / bare)
        click.echo(f"{bare:8.2f}{rate:11.2f}{ratios[-1]:8.3f}{busy:12.1%}")
    own, child = peak_memory()
    click.echo(
        f"extract / bare: median {statistics.median(ratios):.3f}; peak memory {own} MiB"
        + (f", each worker {child} MiB" if workers else "")
    )
    rates = stage_rates(net, found, settings, max_chunks=_NUM_CHUNKS, scratch=scratch)
    shown = ", ".join(f"{stage} {rate:.1f}" for stage, rate in rates.items())
    click.echo(f"images/s of each stage alone, in one process or thread: {shown}")
