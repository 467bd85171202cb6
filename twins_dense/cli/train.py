"""`twins-dense train`: train the model of a config."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..distributed import is_first_process
from .options import data_options, launch_options


@click.command("train", short_help="Train the model of a config.")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--work-dir", help="Work directory.  [default: as the config says, or work_dirs/NAME OF CONFIG]")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint in the work directory.")
@click.option("--amp", is_flag=True, help="Train in mixed precision (bfloat16).")
@data_options
@launch_options
def command(
    config: str,
    overrides: tuple[str, ...],
    work_dir: str | None,
    resume: bool,
    amp: bool,
    data_root: str | None,
    skip_bad: bool,
    **launch: Any,
) -> None:
    """Train the model of CONFIG; KEY=VALUE arguments override settings of the config.

    CONFIG is a name from `twins-dense configs list`, or a file: an MMEngine config, or a LazyConfig or YAML file of
    detectron2. The resolved config, checkpoints, metrics.json and the log are written to the work directory. To use
    several processes, start MMEngine's configs with torchrun, and detectron2's configs with the last four options.

    \b
    Examples:
      twins-dense train torchvision/mask_rcnn_svt_small_1x --data-root data/coco --skip-bad
      twins-dense train mmseg/upernet_svt_small_160k model.backbone.weights=alt_gvt_small.pth --amp
      twins-dense train torchvision/retinanet_svt_base_3x model.backbone.weights=svt_base.in1k-mmpretrain
      twins-dense train CONFIG train_dataloader.batch_size=4 optim_wrapper.optimizer.lr=1e-4 --work-dir runs/a
      twins-dense train CONFIG --work-dir runs/a --resume
      torchrun --nproc_per_node=2 -m twins_dense train CONFIG
      twins-dense train detectron2/mask_rcnn_svt_small_1x --num-gpus 8 --data-root data/coco --skip-bad
    """
    from ..frameworks import console, open_config

    if is_first_process():
        console.show_on(sys.stdout)
    engine, loaded = open_config(config, overrides, data_root=data_root, skip_bad=skip_bad)
    if amp:
        engine.set_amp(loaded)
    work_dir = work_dir or str(engine.default_work_dir(loaded))
    engine.train(loaded, work_dir, resume=resume, launch={k: v for k, v in launch.items() if v is not None})
    if is_first_process():
        click.echo(f"done: {work_dir} contains the checkpoints, the log and metrics.json")
