"""`twins-dense extract`: write the pyramid features of many images."""

from __future__ import annotations

from pathlib import Path

import click

from ..distributed import is_first_process
from ..errors import TwinsError
from ..features import DTYPES, EXTRACTION_PROTOCOLS
from .options import (
    allow_outside_option,
    backbone_options,
    check_window_padding,
    device_option,
    find_device,
    parse_levels,
    workers_option,
)

_NUM_PREVIEWS = 16
_NUM_SHOWN = 20


@click.command("extract", short_help="Write the features of many images to a folder.")
@click.argument("images", nargs=-1, required=True)
@backbone_options
@click.option("--out", required=True, help="Folder for the features: a new one, or an unfinished one to resume.")
@click.option("--image-dir", help="Folder that the names in a list or COCO file are relative to.  [default: found]")
@allow_outside_option
@click.option(
    "--protocol",
    type=click.Choice(EXTRACTION_PROTOCOLS),
    default="crop",
    show_default=True,
    help="crop: resize the short side to --size, then centre crop; imagenet: resize the short side to "
    "--size * 256/224, then centre crop; native: keep the size, and pad to multiples of 32.",
)
@click.option("--size", type=int, help="Side of the square in pixels, a multiple of 32.  [default: 448]")
@click.option(
    "--pool",
    type=click.Choice(["none", "mean"]),
    default="none",
    help="mean: write one vector per level instead of its map.",
)
@click.option("--maps", is_flag=True, help="With --pool mean: write the maps too.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Type of the written values; bfloat16 is stored as float32 whose low bits are zero.",
)
@click.option("--chunk", default=16, show_default=True, type=click.IntRange(min=1), help="Images per chunk.")
@workers_option(8)
@device_option
@click.option("--amp", is_flag=True, help="Compute under autocast in bfloat16.")
@click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile.")
@click.option(
    "--preview",
    is_flag=True,
    help=f"Draw the first {_NUM_PREVIEWS} photos, with the principal components of each level beside them.",
)
def command(
    images: tuple[str, ...],
    variant: str,
    weights: str,
    levels: str,
    window_padding: str,
    out: str,
    image_dir: str | None,
    allow_outside: bool,
    protocol: str,
    size: int | None,
    pool: str,
    maps: bool,
    dtype: str,
    chunk: int,
    workers: int,
    device: str | None,
    amp: bool,
    compiled: bool,
    preview: bool,
) -> None:
    """Write the pyramid features of IMAGES to a folder: dense maps as Zarr, pooled vectors and the index as Parquet.

    IMAGES are files, folders (including subfolders), globs, lists (.txt, one path per line), or one COCO file (.json).
    The index lists unreadable images with the reason. Run the same command again to resume an interrupted extraction.
    Under torchrun, the processes share the images. Read the result with `twins_dense.open_features`, or with zarr and
    pyarrow.

    \b
    Examples:
      twins-dense extract photos/ --variant svt_small --weights svt_small.in1k-timm --out features --preview
      twins-dense extract photos/ --variant svt_base --weights W --out vectors --pool mean --levels c4,c5
      twins-dense extract annotations/instances_val2017.json --variant svt_small --weights W --out f --protocol native
      torchrun --nproc_per_node=8 -m twins_dense extract list.txt --variant svt_large --weights W --out f --amp
    """
    from ..data.image_lists import list_images
    from ..factory import load_backbone_with_report
    from ..features import open_features, optional_packages
    from ..features.prepare import Protocol
    from ..weights.download import fetch_weights, sha256_of

    with optional_packages():
        from ..features.extract import extract
        from ..features.model import Settings
        from ..features.preview import write_previews

    if preview and pool == "mean" and not maps:
        raise TwinsError("--preview draws maps: add --maps, or leave out --pool")
    found = list_images(images, image_dir, out=Path(out), allow_outside=allow_outside)
    if size is None and protocol != "native":
        size = 448
    settings = Settings(
        Protocol(protocol, size, found.upright),
        maps=maps or pool == "none",
        pool=pool == "mean",
        dtype=dtype,
        amp=amp,
        chunk=chunk,
    )
    target = find_device(device)
    out_indices, padding = parse_levels(levels, variant), check_window_padding(window_padding)
    net, loaded = load_backbone_with_report(variant, weights, out_indices=out_indices, window_padding=padding)
    if is_first_process():
        click.echo(str(loaded))
    report = extract(
        net.to(target),
        found,
        Path(out),
        settings,
        weights_sha256=sha256_of(fetch_weights(weights)),
        device=target,
        num_workers=workers,
        compiled=compiled,
    )
    if not is_first_process():
        return
    num_unreadable = len(report.unreadable)
    for line in report.unreadable[:_NUM_SHOWN]:
        click.echo(f"unreadable: {line}", err=True)
    if num_unreadable > _NUM_SHOWN:
        click.echo(f"and {num_unreadable - _NUM_SHOWN} more: see the column error of {out}/index.parquet", err=True)
    click.echo(f"{out}: features of {report.num_images - num_unreadable} images, {num_unreadable} unreadable")
    if report.num_done:
        click.echo(f"{report.num_done / report.seconds:.2f} images/s in {report.seconds:.1f} s")
    if num_unreadable == report.num_images:
        raise TwinsError(f"none of the {report.num_images} images can be read; the first: {report.unreadable[0]}")
    if preview:
        features = open_features(out)
        pictures = write_previews(features, _NUM_PREVIEWS)
        click.echo(
            f"{pictures[0].parent} contains {len(pictures)} pictures: the photo, then {', '.join(features.levels)}"
        )
