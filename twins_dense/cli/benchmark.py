"""`twins-dense benchmark`: our backbone and a peer's, alternating in one process; its group also has `extract`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..atomic import write_atomically
from ..errors import TwinsError
from .benchmark_extract import extract_command
from .options import find_device

if TYPE_CHECKING:
    import torch


class _DefaultGroup(click.Group):
    """What is no name of a benchmark belongs to the first of them."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = ["backbone", *args]
        return super().parse_args(context, args)


@click.group("benchmark", cls=_DefaultGroup)
def command() -> None:
    """Time the backbone beside timm's or mmsegmentation's, or `twins-dense extract` beside the bare model.

    \b
    Examples:
      twins-dense benchmark svt_small            # short for: twins-dense benchmark backbone svt_small
      twins-dense benchmark extract photos/ --pool mean
    """


@command.command("backbone", short_help="Our backbone and a peer's.")
@click.argument("variants", nargs=-1)
@click.option("--peer", type=click.Choice(["timm", "mmseg"]), default="timm", show_default=True, help="Whose Twins.")
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
    """Time the backbone against timm's or mmsegmentation's on the same weights and images, eager float32.

    VARIANTS are all by default. Both sides return all four levels. The two alternate in one process, and what counts is
    the ratio within a pair: its median over all pairs, and the quartiles as its spread.

    \b
    Examples:
      twins-dense benchmark svt_small
      twins-dense benchmark svt_small pcpvt_small --peer mmseg --shape 1x512x512 --rounds 20
    """
    import torch

    from .. import list_variants

    find_device(device)
    if json_file is not None and Path(json_file).exists():
        raise TwinsError(f"--json {json_file!r} exists: name a new file")
    make_pair, version = {"timm": _beside_timm, "mmseg": _beside_mmseg}[peer], _version(peer)
    rows: list[dict[str, Any]] = []
    sizes = [_parse_shape(shape) for shape in shapes or ("1x800x1216", "8x224x224")]
    click.echo(f"torch {torch.__version__}, {peer} {version}, {device}, {torch.get_num_threads()} threads")
    header = f"{'ours s':>9}{f'{peer} s':>9}   {peer} / ours (median, quartiles)"
    click.echo(f"{'variant':14}{'shape':>14}{header}")
    for variant in variants or list_variants():
        run_ours, run_theirs = make_pair(variant, device)
        for batch, height, width in sizes:
            images = torch.randn(batch, 3, height, width, device=device)
            with torch.inference_mode():
                # The first pair warms up and shows that both compute the same.
                for level, expected in zip(run_ours(images), run_theirs(images), strict=True):
                    torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
                pairs = [(_seconds(run_ours, images), _seconds(run_theirs, images)) for _ in range(rounds)]
            ratios = [their_seconds / our_seconds for our_seconds, their_seconds in pairs]
            low, high = (min(ratios), max(ratios)) if rounds < 4 else statistics.quantiles(ratios, n=4)[::2]
            our_median, their_median = (statistics.median(column) for column in zip(*pairs, strict=True))
            shape = f"{batch}x{height}x{width}"
            rows.append({"variant": variant, "shape": shape, f"ours_and_{peer}_seconds": pairs})
            click.echo(
                f"{variant:14}{shape:>14}{our_median:9.3f}{their_median:9.3f}   "
                f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
            )
    if json_file is not None:
        write_atomically(Path(json_file), json.dumps(rows, indent=1).encode() + b"\n")


_Run = Callable[["torch.Tensor"], Any]  # images to levels


def _beside_timm(variant: str, device: str) -> tuple[_Run, _Run]:
    """Our backbone and timm's with the same weights."""
    import timm

    from .. import create_backbone, load_weights

    ours = create_backbone(variant, level_norm=False).to(device).eval()  # timm has no norm on the levels
    theirs: Any = timm.create_model(f"twins_{variant}", pretrained=False).to(device).eval()
    load_weights(ours, theirs.state_dict())
    return ours, partial(theirs.forward_intermediates, norm=False, intermediates_only=True)


def _beside_mmseg(variant: str, device: str) -> tuple[_Run, _Run]:
    """Our backbone and mmsegmentation's, built from the config in its package, with the same weights."""
    from mmengine.config import Config

    from .. import create_backbone, get_spec, load_weights
    from ..frameworks.mmengine import enable_mmseg

    enable_mmseg()
    import mmseg
    from mmseg.registry import MODELS

    spec = dataclasses.replace(get_spec(variant), norm_eps=1e-5)
    family, size = variant.split("_")
    (path,) = (Path(mmseg.__file__).parent / ".mim" / "configs" / "twins").glob(
        f"twins_{family}-{size[0]}_uperhead_*.py"
    )
    config = Config.fromfile(path).model.backbone
    theirs = MODELS.build({**config, "init_cfg": None, "_scope_": "mmseg"}).to(device).eval()
    ours = create_backbone(spec, window_padding="upstream_mask", partial_patches="pad").to(device).eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs


def _version(peer: str) -> str:
    package = {"timm": "timm", "mmseg": "mmsegmentation"}[peer]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise TwinsError(f"{package} is not installed, which this compares with: pip install {package}") from None


def _seconds(run: _Run, images: torch.Tensor) -> float:
    import torch

    start = time.perf_counter()
    run(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _parse_shape(shape: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if match is None:
        raise TwinsError(f"--shape {shape!r}: write BATCHxHEIGHTxWIDTH, for example 1x800x1216")
    batch, height, width = map(int, match.groups())
    return batch, height, width


command.add_command(extract_command)
