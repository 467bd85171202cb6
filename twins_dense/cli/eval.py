"""`twins-dense eval`: evaluate a checkpoint."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..distributed import is_first_process
from .options import check_data_options, data_options, launch_options, own_data_option, parse_source


@click.command("eval", short_help="Evaluate a checkpoint.")
@click.argument("arguments", nargs=-1, required=True, metavar="[CONFIG] MODEL [KEY=VALUE]...")
@click.option("--work-dir", help="Folder for the results.  [default: WORK DIRECTORY OF TRAINING_eval/TIME]")
@click.option("--tta", is_flag=True, help="Average over several sizes and flips (mmsegmentation's configs only).")
@own_data_option
@data_options
@launch_options
def command(
    arguments: tuple[str, ...],
    work_dir: str | None,
    tta: bool,
    data_dir: str | None,
    data_root: str | None,
    skip_bad: bool,
    strict: bool,
    allow_outside: bool,
    **launch: Any,
) -> None:
    """Evaluate MODEL on the test data of its config, or on the validation images of a folder with --data.

    MODEL is a work directory of `twins-dense train` (its best checkpoint, else its last), a checkpoint, or the name of
    a published segmentor. Checkpoints that do not contain their config need CONFIG. If an MMEngine config has no test
    data, or the same as for validation, its `val_` settings apply. metrics.json (scores as fractions), the resolved
    config and the log are written to a new folder beside the run.

    \b
    Examples:
      twins-dense eval runs/mine
      twins-dense eval runs/mine/epoch_12.pth --data other_photos
      twins-dense eval mmseg/upernet_svt_small_160k CHECKPOINT --tta
      twins-dense eval CONFIG CHECKPOINT val_evaluator.backend=pycocotools
      twins-dense eval detectron2/mask_rcnn_svt_small_1x work_dirs/a/model_final.pth --data-root data/coco
    """
    from ..frameworks import adapt_data, console
    from ..inference.load import open_source

    if is_first_process():
        console.show_on(sys.stdout)
    source, rest, overrides = parse_source(arguments)
    if rest:
        raise click.UsageError(f"Got unexpected extra argument ({rest[0]})")
    check_data_options(data_dir, data_root)
    engine, config, checkpoint = open_source(source, overrides)
    adapt_data(engine, config, data_root=data_root, skip_bad=skip_bad, strict=strict, allow_outside=allow_outside)
    if tta:
        engine.set_tta(config)
    if work_dir is None:
        is_file = Path(checkpoint).is_file()
        run = Path(checkpoint).resolve().parent if is_file else Path(os.path.abspath(engine.default_work_dir(config)))
        work_dir = os.path.relpath(run.with_name(f"{run.name}_eval") / time.strftime("%Y%m%d_%H%M%S"))
    if data_dir is not None:
        from ..data.layouts import recognise
        from ..frameworks.work_dir import for_evaluation

        for_evaluation(work_dir)  # before annotations of an earlier run could be replaced
        engine.set_data(config, recognise(data_dir, out=Path(work_dir) / "data", skip_bad=skip_bad))
    metrics = engine.evaluate(config, checkpoint, work_dir, launch={k: v for k, v in launch.items() if v is not None})
    if not is_first_process() or launch["machine_rank"]:
        return
    click.echo(console.evaluation_table(metrics))
    click.echo(f"{Path(work_dir) / 'metrics.json'} contains all scores")
