"""`twins-dense init`: write the config that `train --data` would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import TwinsError
from .options import print_sections, take_options, training_options


@click.command("init", short_help="Write the config for your own data.")
@click.argument("data_dir", metavar="DIR")
@click.option("--config", default="torchvision/mask_rcnn_svt_small_1x", show_default=True, help="Config to start from.")
@click.option("--out", default="my_config", show_default=True, help="New folder for the config.")
@click.option("--skip-bad", is_flag=True, help="Leave out unusable images and annotations, and list them.")
@training_options
def command(data_dir: str, config: str, out: str, skip_bad: bool, **options: Any) -> None:
    """Write the config that `twins-dense train CONFIG --data DIR` would use, for you to read and change.

    The first lines of the config describe the data, and give the reason of each setting. Annotations that are not in
    COCO format are converted into the folder as well, so keep it.

    \b
    Examples:
      twins-dense init my_data
      twins-dense init my_data --config mmseg/semantic_fpn_svt_small_80k --out street --epochs 50
      twins-dense train my_config/config.py
    """
    from ..frameworks import open_config
    from ..frameworks.options import TrainingOptions
    from ..frameworks.own_data import describe_plan, plan_run

    folder = Path(out)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise TwinsError(f"output {out!r} is not empty: choose another --out")
    engine, loaded = open_config(config)
    given = TrainingOptions(**take_options(TrainingOptions, options))
    plan = plan_run(data_dir, given, out=folder / "data", skip_bad=skip_bad)
    engine.set_data(loaded, plan.data)
    engine.set_training(loaded, plan.options)
    print_sections(plan.sections)
    path = engine.write_config(loaded, folder / "config", describe_plan(plan, config))
    click.echo(f"train it with: twins-dense train {path}")
