"""`twins-dense check-data`: look at the data of a config without training."""

from __future__ import annotations

import click


@click.command("check-data")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data-root", help="Folder of the data set; the config's own paths are relative to it.")
@click.option("--skip-bad", is_flag=True, help="Leave out what can't be used, and list it.")
def command(config: str, overrides: tuple[str, ...], data_root: str | None, skip_bad: bool) -> None:
    """Check every image and annotation of CONFIG's data, as `train` does before it starts.

    \b
    Examples:
      twins-dense check-data configs/mmseg/semantic_fpn_svt_small_80k.py --data-root data/ade/ADEChallengeData2016
      twins-dense check-data CONFIG --data-root my_data --skip-bad
    """
    from ..frameworks import open_config

    engine, loaded = open_config(config, overrides, data_root=data_root, skip_bad=skip_bad)
    for line in engine.check_data(loaded):
        click.echo(line)
