"""`twins-dense benchmark`: compare our backbone with another project's; the subcommand `extract` times extraction."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import click

from ..atomic import write_atomically
from ..errors import TwinsError, requires_extra
from .benchmark_extract import extract_command
from .options import find_device

_PACKAGES = {"timm": "timm", "mmseg": "mmsegmentation"}
# mmsegmentation works only with packages that it does not require itself; our extra has them.
_INSTALL = {"timm": "timm", "mmseg": "'twins-dense[segmentation]'"}


class _DefaultGroup(click.Group):
    """A group that runs `backbone` if the first argument does not name a subcommand."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = ["backbone", *args]
        return super().parse_args(context, args)


@click.group("benchmark", cls=_DefaultGroup, short_help="Time backbones and extraction.")
def command() -> None:
    """Time the backbone beside timm's or mmsegmentation's, or `twins-dense extract` beside the bare model.

    \b
    Examples:
      twins-dense benchmark svt_small            # short for: twins-dense benchmark backbone svt_small
      twins-dense benchmark extract photos/ --pool mean
    """


@command.command("backbone", short_help="Our backbone beside another project's.")
@click.argument("variants", nargs=-1)
@click.option(
    "--peer", type=click.Choice(list(_PACKAGES)), default="timm", show_default=True, help="Project to compare with."
)
@click.option("--shape", "shapes", multiple=True, help="BATCHxHEIGHTxWIDTH.  [default: 1x800x1216, 8x224x224]")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Timed pairs of runs.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--json", "json_file", help="Also write the seconds of every pair to this file.")
def backbone_command(
    variants: tuple[str, ...],
    peer: str,
    shapes: tuple[str, ...],
    rounds: int,
    device: str,
    json_file: str | None,
) -> None:
    """Time the backbone against timm's or mmsegmentation's on the same weights and images, in eager float32.

    VARIANTS defaults to all. Both backbones return all four levels. They alternate in one process, and the result is
    the ratio within a pair: its median over all pairs, with the quartiles as its spread.

    \b
    Examples:
      twins-dense benchmark svt_small
      twins-dense benchmark svt_small pcpvt_small --peer mmseg --shape 1x512x512 --rounds 20
    """
    import torch

    from .. import list_variants
    from ..deploy.benchmark import compare, timm_pair

    find_device(device)
    if json_file is not None and Path(json_file).exists():
        raise TwinsError(f"--json {json_file!r} exists: name a new file")
    version = _version(peer)
    make_pair: Any = timm_pair
    if peer == "mmseg":
        with requires_extra("segmentation"):
            from ..frameworks.mmengine.mmseg_peer import mmseg_pair as make_pair
    rows: list[dict[str, Any]] = []
    sizes = [_parse_shape(shape) for shape in shapes or ("1x800x1216", "8x224x224")]
    click.echo(f"torch {torch.__version__}, {peer} {version}, {device}, {torch.get_num_threads()} threads")
    header = f"{'ours s':>9}{f'{peer} s':>9}   {peer} / ours (median, quartiles)"
    click.echo(f"{'variant':14}{'shape':>14}{header}")
    for variant in variants or list_variants():
        ours, theirs = make_pair(variant, device)
        for batch, height, width in sizes:
            result = compare(ours, theirs, torch.randn(batch, 3, height, width, device=device), rounds)
            shape, (low, high) = f"{batch}x{height}x{width}", result.ratio_range
            rows.append({"variant": variant, "shape": shape, f"ours_and_{peer}_seconds": result.pairs})
            click.echo(
                f"{variant:14}{shape:>14}{result.our_median:9.3f}{result.their_median:9.3f}   "
                f"{result.median_ratio:.2f} ({low:.2f}–{high:.2f})"
            )
    if json_file is not None:
        write_atomically(Path(json_file), json.dumps(rows, indent=1).encode() + b"\n")


def _version(peer: str) -> str:
    try:
        return importlib.metadata.version(_PACKAGES[peer])
    except importlib.metadata.PackageNotFoundError:
        raise TwinsError(f"{_PACKAGES[peer]} is not installed: pip install {_INSTALL[peer]}") from None


def _parse_shape(shape: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", shape)
    if match is None:
        raise TwinsError(f"--shape {shape!r}: write BATCHxHEIGHTxWIDTH, for example 1x800x1216")
    batch, height, width = map(int, match.groups())
    return batch, height, width


command.add_command(extract_command)
