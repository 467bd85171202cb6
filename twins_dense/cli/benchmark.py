"""`twins-dense benchmark`: our backbone and timm's, alternating in one process; its group also has `extract`."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError
from ..files import write_atomically
from .benchmark_extract import extract_command


class _DefaultGroup(click.Group):
    """What is no name of a benchmark belongs to the first of them."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = ["backbone", *args]
        return super().parse_args(context, args)


@click.group("benchmark", cls=_DefaultGroup)
def command() -> None:
    """Time the backbone beside timm's, or `twins-dense extract` beside the bare model.

    \b
    Examples:
      twins-dense benchmark svt_small            # short for: twins-dense benchmark backbone svt_small
      twins-dense benchmark extract photos/ --pool mean
    """


@command.command("backbone", short_help="Our backbone and timm's.")
@click.argument("variants", nargs=-1)
@click.option("--shape", "shapes", multiple=True, help="BATCHxHEIGHTxWIDTH.  [default: 1x800x1216, 8x224x224]")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Timed pairs of runs.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--json", "json_file", help="Also write the seconds of every pair to this file.")
def backbone_command(
    variants: tuple[str, ...], shapes: tuple[str, ...], rounds: int, device: str, json_file: str | None
) -> None:
    """Time the backbone against timm's on the same weights and images, eager float32, for VARIANTS (all by default).

    Both return all four levels. The two alternate in one process, and what counts is the ratio within a pair: its
    median over all pairs, and the quartiles as its spread.

    \b
    Examples:
      twins-dense benchmark svt_small
      twins-dense benchmark svt_small pcpvt_small --shape 1x512x512 --rounds 20
    """
    import torch

    from .. import create_backbone, list_variants, load_weights

    try:
        import timm
    except ImportError:
        raise TwinsError("timm is not installed, which this compares with: pip install timm") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TwinsError(f"--device {device!r}: {str(error).splitlines()[0]}") from None
    if json_file is not None and Path(json_file).exists():
        raise TwinsError(f"--json {json_file!r} exists: name a new file")
    rows: list[dict[str, Any]] = []
    sizes = [_parse_shape(shape) for shape in shapes or ("1x800x1216", "8x224x224")]
    click.echo(f"torch {torch.__version__}, timm {timm.__version__}, {device}, {torch.get_num_threads()} threads")
    click.echo(f"{'variant':14}{'shape':>14}{'ours s':>9}{'timm s':>9}   timm / ours (median, quartiles)")
    for variant in variants or list_variants():
        ours = create_backbone(variant, level_norm=False).to(device).eval()  # timm has no norm on the levels
        peer = timm.create_model(f"twins_{variant}", pretrained=False).to(device).eval()
        load_weights(ours, peer.state_dict())
        for batch, height, width in sizes:
            images = torch.randn(batch, 3, height, width, device=device)

            def run_ours(net: Any = ours, images: Any = images) -> Any:
                return net(images)

            def run_timm(net: Any = peer, images: Any = images) -> Any:
                return net.forward_intermediates(images, norm=False, intermediates_only=True)

            with torch.inference_mode():
                # The first pair warms up and shows that both compute the same.
                for level, expected in zip(run_ours(), run_timm(), strict=True):
                    torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
                pairs = [(_seconds(run_ours, device), _seconds(run_timm, device)) for _ in range(rounds)]
            ratios = [timm_seconds / our_seconds for our_seconds, timm_seconds in pairs]
            low, high = (min(ratios), max(ratios)) if rounds < 4 else statistics.quantiles(ratios, n=4)[::2]
            ours_median, timm_median = (statistics.median(column) for column in zip(*pairs, strict=True))
            shape = f"{batch}x{height}x{width}"
            rows.append({"variant": variant, "shape": shape, "ours_and_timm_seconds": pairs})
            click.echo(
                f"{variant:14}{shape:>14}{ours_median:9.3f}{timm_median:9.3f}   "
                f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
            )
    if json_file is not None:
        write_atomically(Path(json_file), json.dumps(rows, indent=1).encode() + b"\n")


def _seconds(run: Callable[[], Any], device: str) -> float:
    import torch

    start = time.perf_counter()
    run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _parse_shape(shape: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if match is None:
        raise TwinsError(f"--shape {shape!r}: write BATCHxHEIGHTxWIDTH, for example 1x800x1216")
    batch, height, width = map(int, match.groups())
    return batch, height, width


command.add_command(extract_command)
