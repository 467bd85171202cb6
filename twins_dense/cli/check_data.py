"""`twins-dense check-data`: check data without training."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from ..errors import TwinsError
from .options import data_options, print_sections


@click.command("check-data", short_help="Check a folder of data, or the data of a config.")
@click.argument("source", metavar="DIR|CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@data_options
def command(source: str, overrides: tuple[str, ...], data_root: str | None, **options: bool) -> None:
    """Check all images and annotations of a folder or a config, as `train` does before it starts.

    For a folder DIR, the layout is recognised (COCO, Roboflow, YOLO, Pascal VOC, or images with label maps), and
    statistics and suggested settings are shown as well. All problems are listed, up to the first twenty.

    \b
    Examples:
      twins-dense check-data my_data
      twins-dense check-data mmseg/semantic_fpn_svt_small_80k --data-root data/ade/ADEChallengeData2016
      twins-dense check-data CONFIG --data-root my_data --skip-bad
    """
    from ..data.problems import DataError

    try:
        if Path(source).is_dir():
            if overrides or data_root is not None:
                given = overrides[0] if overrides else "--data-root"
                raise TwinsError(f"{given!r} goes with a config, but {source!r} is a folder; omit one of them")
            _check_folder(source, **options)
        else:
            _check_config(source, overrides, data_root, **options)
    except DataError as error:
        for line in error.first_problems():
            click.echo(line)
        raise


def _check_folder(folder: str, *, skip_bad: bool, **options: bool) -> None:
    from ..data.check import check_folder, describe_contents, describe_folder, describe_suggestion
    from ..data.layouts import recognise

    with tempfile.TemporaryDirectory(prefix="twins_dense-") as out:
        data = recognise(folder, out=out, skip_bad=skip_bad)
        print_sections([("data", describe_folder(data))])
        lines, suggestion = describe_contents(data)
        print_sections(
            [
                ("training images", lines),
                ("suggested settings", describe_suggestion(suggestion)),
                ("checks", check_folder(data, skip_bad=skip_bad, **options)),
            ]
        )


def _check_config(config: str, overrides: tuple[str, ...], data_root: str | None, **options: bool) -> None:
    from ..frameworks import open_config

    engine, loaded = open_config(config, overrides, data_root=data_root, **options)
    for line in engine.check_data(loaded):
        click.echo(line)
