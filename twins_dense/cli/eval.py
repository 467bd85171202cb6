"""`twins-dense eval`: evaluate a checkpoint."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..distributed import is_first_process
from .options import data_options, launch_options


@click.command("eval", short_help="Evaluate a checkpoint.")
@click.argument("config")
@click.argument("checkpoint")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--work-dir", help="Folder for the results.  [default: WORK DIRECTORY OF TRAINING_eval/TIME]")
@click.option("--tta", is_flag=True, help="Average over several sizes and flips (mmsegmentation's configs only).")
@data_options
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
    """Evaluate CHECKPOINT, from a training run of CONFIG, on the test data of the config.

    CHECKPOINT can also be a segmentor published by mmsegmentation or the official repository. If an MMEngine config has
    no test data, or the same as for validation, its `val_` settings apply. metrics.json (scores as fractions), the
    resolved config and the log are written to the work directory.

    \b
    Examples:
      twins-dense eval torchvision/mask_rcnn_svt_small_1x work_dirs/a/epoch_12.pth --data-root data/coco
      twins-dense eval mmseg/upernet_svt_small_160k CHECKPOINT --tta
      twins-dense eval CONFIG CHECKPOINT val_evaluator.backend=pycocotools
      twins-dense eval detectron2/mask_rcnn_svt_small_1x work_dirs/a/model_final.pth --data-root data/coco
    """
    from ..frameworks import console, open_config

    if is_first_process():
        console.show_on(sys.stdout)
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
    click.echo(f"{Path(work_dir) / 'metrics.json'} contains these values")
