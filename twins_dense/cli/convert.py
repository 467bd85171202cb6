"""`twins-dense convert`: convert weights to the parameter names of another project."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from ..weights.formats import FORMATS, TASKS


@click.command("convert", short_help="Convert weights to the names of another project.")
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Project whose names OUT gets.")
@click.option("--task", type=click.Choice(TASKS), help="What to write.  [default: as much as --to supports]")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
def command(source: str, out: str, to: str, task: str | None, dry_run: bool) -> None:
    """Convert the weights IN, of any known format, to a state dict OUT (.pth or .safetensors).

    IN is a file or a name from `twins-dense weights list`; its format is recognised by its keys. A backbone is written
    without a prefix, with the names of the other project's backbone class; a classifier or segmentor is written as the
    whole model. The heads of a segmentor are copied unchanged.

    \b
    Examples:
      twins-dense convert alt_gvt_small.pth svt_small.safetensors --to timm
      twins-dense convert svt_base.in1k-mmpretrain backbone.pth --to mmseg --task backbone
      twins-dense convert epoch_12.pth backbone.pth --to official --dry-run
    """
    from ..weights.convert import convert_file
    from ..weights.download import fetch_weights, sha256_of

    conversion = convert_file(source, out, to=to, task=task, dry_run=dry_run)
    num_values = sum(value.numel() for value in conversion.state.values())
    dropped = Counter(name.partition(".")[0] for name in conversion.dropped)
    click.echo(
        f"{conversion.variant}, {conversion.source} names -> {to} {conversion.task}: "
        f"{len(conversion.state)} entries with {num_values:,} values, {len(conversion.dropped)} dropped"
        + (f" ({', '.join(f'{group}.* {count}' for group, count in dropped.items())})" if dropped else "")
    )
    if conversion.norm_eps:
        click.echo(f"{conversion.source} computes with LayerNorm {conversion.norm_eps}")
    for path in [fetch_weights(source)] if dry_run else [fetch_weights(source), Path(out)]:
        click.echo(f"{sha256_of(path)}  {path}")
    if dry_run:
        click.echo("dry run: nothing was written")
