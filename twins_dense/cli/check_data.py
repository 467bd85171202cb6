"""`twins-dense check-data`: check the data of a config without training."""

from __future__ import annotations

import click

from .options import data_options


@click.command("check-data", short_help="Check the data of a config.")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@data_options
def command(config: str, overrides: tuple[str, ...], data_root: str | None, skip_bad: bool) -> None:
    """Check all images and annotations of CONFIG, as `train` does before it starts.

    \b
    Examples:
      twins-dense check-data mmseg/semantic_fpn_svt_small_80k --data-root data/ade/ADEChallengeData2016
      twins-dense check-data CONFIG --data-root my_data --skip-bad
    """
    from ..frameworks import open_config

    engine, loaded = open_config(config, overrides, data_root=data_root, skip_bad=skip_bad)
    for line in engine.check_data(loaded):
        click.echo(line)
