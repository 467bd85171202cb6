"""`twins-dense configs`: list, show and copy the configs that come with the package."""

from __future__ import annotations

import click

from ..errors import TwinsError


@click.group("configs")
def command() -> None:
    """List, show and copy the configs that come with the package.

    The name of a config works wherever a path does. Copy a config to make changes that KEY=VALUE arguments cannot.

    \b
    Examples:
      twins-dense configs list
      twins-dense configs show torchvision/mask_rcnn_svt_small_1x
      twins-dense configs copy torchvision/mask_rcnn_svt_small_1x my_configs
    """


@command.command("list", short_help="List the names of the configs.")
@click.argument("pattern", default="*")
def list_command(pattern: str) -> None:
    """List the names of the configs; PATTERN (with * and ?) selects some of them.

    \b
    Examples:
      twins-dense configs list
      twins-dense configs list '*/*svt_small*'
    """
    from ..frameworks.shipped_configs import list_configs

    names = list_configs(pattern)
    if not names:
        raise TwinsError(f"no config matches {pattern!r}: `twins-dense configs list` shows all")
    for name in names:
        click.echo(name)


@command.command("show", short_help="Print a config.")
@click.argument("name")
def show_command(name: str) -> None:
    """Print the config NAME.

    \b
    Example:
      twins-dense configs show torchvision/mask_rcnn_svt_small_1x
    """
    from ..frameworks.shipped_configs import find_config

    click.echo(find_config(name).read_text(encoding="utf-8"), nl=False)


@command.command("copy", short_help="Copy a config into a folder.")
@click.argument("name")
@click.argument("folder")
def copy_command(name: str, folder: str) -> None:
    """Copy the config NAME, and the files that it inherits from, into FOLDER. Existing files are never overwritten.

    \b
    Examples:
      twins-dense configs copy torchvision/mask_rcnn_svt_small_1x my_configs
      twins-dense train my_configs/mask_rcnn_svt_small_1x.py
    """
    from ..frameworks.shipped_configs import copy_config

    for path in copy_config(name, folder):
        click.echo(str(path))
