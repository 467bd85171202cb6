"""`twins-dense convert`: weights from one project's names to another's."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import click

from ..errors import TwinsError
from ..weights.formats import FORMATS, TASKS

_SUFFIXES = (".pth", ".safetensors")


@click.command("convert")
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Whose names OUT gets.")
@click.option("--task", type=click.Choice(TASKS), help="What OUT is of.  [default: as much as --to has a place for]")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def command(source: str, out: str, to: str, task: str | None, dry_run: bool) -> None:
    """Convert the weights IN, of any known format, to a state dict OUT (.pth or .safetensors).

    IN is a file or a name of `twins-dense weights list`; its format is recognised by its keys. A backbone is written
    without a prefix, as the other project's backbone class names its entries; a classifier or segmentor is the whole
    model. Heads of a segmentor go along as they are.

    \b
    Examples:
      twins-dense convert alt_gvt_small.pth svt_small.safetensors --to timm
      twins-dense convert svt_base.in1k-mmpretrain backbone.pth --to mmseg --task backbone
      twins-dense convert epoch_12.pth backbone.pth --to official --dry-run
    """
    from ..atomic import write_atomically
    from ..weights.download import fetch_weights, sha256_of
    from ..weights.keymap import convert
    from ..weights.load import read_state_dict

    target = Path(out)
    if target.suffix not in _SUFFIXES:
        raise TwinsError(f"OUT {out!r}: end its name in {' or '.join(_SUFFIXES)}")
    if target.exists():
        raise TwinsError(f"OUT {out!r} exists: name a new file")
    path = fetch_weights(source)
    state = read_state_dict(source)
    try:
        conversion = convert(state, to=to, task=task)
    except TwinsError as error:
        raise TwinsError(f"weights {source!r}: {error}") from None

    numel = sum(value.numel() for value in conversion.state.values())
    dropped = Counter(name.partition(".")[0] for name in conversion.dropped)
    click.echo(
        f"{conversion.variant}, {conversion.source} names -> {to} {conversion.task}: "
        f"{len(conversion.state)} entries of {numel:,} numbers, {len(conversion.dropped)} dropped"
        + (f" ({', '.join(f'{group}.* {count}' for group, count in dropped.items())})" if dropped else "")
    )
    if conversion.norm_eps:
        click.echo(f"{conversion.source} computes with LayerNorm {conversion.norm_eps}")
    click.echo(f"{sha256_of(path)}  {path}")
    if dry_run:
        click.echo("dry run: nothing is written")
        return
    write_atomically(target, _serialised(conversion.state, target.suffix))
    click.echo(f"{sha256_of(target)}  {target}")


def _serialised(state: dict, suffix: str) -> bytes:
    import torch
    from safetensors.torch import save

    # Copies, because a file of a part of a tensor would hold all of it, and safetensors refuses shared memory.
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    if suffix == ".safetensors":
        return save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
