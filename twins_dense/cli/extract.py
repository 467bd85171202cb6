"""`twins-dense extract`: pyramid features of many images."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import TwinsError
from . import is_first_process
from .options import (
    backbone_options,
    check_window_padding,
    device_option,
    find_device,
    parse_levels,
    workers_option,
)

_NUM_PREVIEWS = 16
_NUM_SHOWN = 20
_JPEG_SIDE = 65_500  # pixels; the largest that the format has


@click.command("extract")
@click.argument("images", nargs=-1, required=True)
@backbone_options
@click.option("--out", required=True, help="Folder for the features: a new one, or an unfinished one to go on with.")
@click.option("--image-dir", help="What the names in a list or COCO file are relative to.  [default: found]")
@click.option(
    "--protocol",
    type=click.Choice(["crop", "imagenet", "native"]),
    default="crop",
    show_default=True,
    help="crop: short side to --size, centre crop; imagenet: short side to --size * 256/224, centre crop; "
    "native: pixels as they are, padded to multiples of 32.",
)
@click.option("--size", type=int, help="Side of the square in pixels, a multiple of 32.  [default: 448]")
@click.option(
    "--pool", type=click.Choice(["none", "mean"]), default="none", help="mean: a vector a level, not its map."
)
@click.option("--maps", is_flag=True, help="With --pool mean: the maps too.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of what is written; bfloat16 is stored as float32 with zero bits.",
)
@click.option("--chunk", default=16, show_default=True, type=click.IntRange(min=1), help="Images at a time.")
@workers_option(8)
@device_option
@click.option("--amp", is_flag=True, help="Compute under autocast in bfloat16.")
@click.option("--compile", "compiled", is_flag=True, help="Run through torch.compile.")
@click.option(
    "--preview", is_flag=True, help=f"Draw the first {_NUM_PREVIEWS} photos with each level's PCA beside them."
)
def command(
    images: tuple[str, ...],
    variant: str,
    weights: str,
    levels: str,
    window_padding: str,
    out: str,
    image_dir: str | None,
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
    """Write pyramid features of IMAGES to a folder: dense maps as Zarr, pooled vectors and the index as Parquet.

    IMAGES are files, folders (with subfolders), globs, lists (.txt, a path a line), or one COCO file (.json). Images
    that can't be read are listed in the index with the reason. A run that was stopped goes on where it was when it is
    given again. Under torchrun the processes share the images. Read the result with `twins_dense.open_features`, or
    with zarr and pyarrow.

    \b
    Examples:
      twins-dense extract photos/ --variant svt_small --weights svt_small.in1k-timm --out features --preview
      twins-dense extract photos/ --variant svt_base --weights W --out vectors --pool mean --levels c4,c5
      twins-dense extract annotations/instances_val2017.json --variant svt_small --weights W --out f --protocol native
      torchrun --nproc_per_node=8 -m twins_dense extract list.txt --variant svt_large --weights W --out f --amp
    """
    from ..data.image_lists import list_images
    from ..factory import load_backbone_with_report
    from ..features import needed_packages, open_features
    from ..features.prepare import Protocol
    from ..weights.download import fetch_weights, sha256_of

    with needed_packages():
        from ..features.extract import extract
        from ..features.model import Settings

    if preview and pool == "mean" and not maps:
        raise TwinsError("--preview draws maps: add --maps, or leave --pool away")
    found = list_images(images, image_dir, out=Path(out))
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
    for line in report.unreadable[:_NUM_SHOWN]:
        click.echo(f"unreadable: {line}", err=True)
    if len(report.unreadable) > _NUM_SHOWN:
        click.echo(
            f"and {len(report.unreadable) - _NUM_SHOWN} more, see the column error of {out}/index.parquet", err=True
        )
    num_unreadable = len(report.unreadable)
    click.echo(f"{out}: features of {report.num_images - num_unreadable} images, {num_unreadable} unreadable")
    if report.num_done:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items() if stage != "total")
        rate = report.num_done / report.seconds["total"]
        click.echo(f"{rate:.2f} images/s in {report.seconds['total']:.1f} s; seconds by stage, which overlap: {stages}")
    if num_unreadable == report.num_images:
        raise TwinsError(f"none of the {report.num_images} images can be read; the first: {report.unreadable[0]}")
    if preview:
        _draw(open_features(out))


def _draw(features) -> None:  # type: ignore[no-untyped-def]
    """Draw the first images that have features."""
    from PIL import Image

    from ..features.preview import draw_preview, preview_path

    rows = features.readable().indices[:_NUM_PREVIEWS]
    for row in rows:
        path = preview_path(features.folder, row)
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(draw_preview(features, row))
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))  # smaller ones stay as they are
        picture.save(path, quality=92)
    click.echo(f"{path.parent} holds {len(rows)} pictures: the photo, then {', '.join(features.levels)}")
