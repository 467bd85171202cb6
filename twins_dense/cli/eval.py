"""`twins-dense eval`: score a checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from ..distributed import is_first_process
from .options import launch_options


@click.command("eval")
@click.argument("config")
@click.argument("checkpoint")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--work-dir", help="Where results go.  [default: that of training + _eval/TIME]")
@click.option("--tta", is_flag=True, help="Average over several sizes and flips; for mmsegmentation's configs.")
@click.option("--data-root", help="Folder of the data set; the config's own paths are relative to it.")
@click.option("--skip-bad", is_flag=True, help="Leave out unusable images and annotations, and list them.")
@launch_options
def command(
    config: str,
    checkpoint: str,
    overrides: tuple[str, ...],
    work_dir: str | None,
    tta: bool,
    data_root: str | None,
    skip_bad: bool,
    **launch: Any,
) -> None:
    """Score CHECKPOINT, of a training run of CONFIG, on the config's test data.

    CHECKPOINT may also be a segmentor that mmsegmentation or the official repository has published.
    Where an MMEngine config names no test data, or the same as for validation, its `val_` settings serve.
    The work directory gets metrics.json, the resolved config and a folder with the log.

    \b
    Examples:
      twins-dense eval configs/torchvision/mask_rcnn_svt_small_1x.py work_dirs/a/epoch_12.pth --data-root data/coco
      twins-dense eval configs/mmseg/upernet_svt_small_160k.py CHECKPOINT --tta
      twins-dense eval CONFIG CHECKPOINT val_evaluator.backend=pycocotools
      twins-dense eval configs/detectron2/mask_rcnn_svt_small_1x.py work_dirs/a/model_final.pth --data-root data/coco
    """
    from ..frameworks import open_config

    engine, loaded = open_config(config, overrides, data_root=data_root, skip_bad=skip_bad)
    if tta:
        engine.set_tta(loaded)
    if work_dir is None:
        run = Path(os.path.abspath(engine.default_work_dir(loaded)))
        run = run.with_name(f"{run.name}_eval") / time.strftime("%Y%m%d_%H%M%S")
        work_dir = os.path.relpath(run)
    metrics = engine.evaluate(loaded, checkpoint, work_dir, launch={k: v for k, v in launch.items() if v is not None})
    if not is_first_process() or launch["machine_rank"]:
        return
    for name, value in metrics.items():
        click.echo(f"{name:>20}  {value:.4f}")
    click.echo(f"{Path(work_dir) / 'metrics.json'} holds these numbers")
