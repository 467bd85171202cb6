"""`twins-dense train`: train the model of a config."""

from __future__ import annotations

import copy
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..distributed import is_first_process
from ..errors import one_line
from .options import (
    check_data_options,
    data_options,
    launch_options,
    monitoring_options,
    own_data_option,
    print_sections,
    take_options,
    training_options,
)


@click.command("train", short_help="Train the model of a config.")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--work-dir", help="Work directory.  [default: as the config says, or work_dirs/NAME OF CONFIG]")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint in the work directory.")
@click.option("--no-report", is_flag=True, help="Do not evaluate the trained model and write a report at the end.")
@click.option("--amp", is_flag=True, help="Train in mixed precision (bfloat16).")
@own_data_option
@training_options
@monitoring_options
@data_options
@launch_options
def command(
    config: str,
    overrides: tuple[str, ...],
    work_dir: str | None,
    resume: bool,
    no_report: bool,
    amp: bool,
    data_dir: str | None,
    data_root: str | None,
    skip_bad: bool,
    strict: bool,
    allow_outside: bool,
    **options: Any,
) -> None:
    """Train the model of CONFIG; KEY=VALUE arguments override settings of the config.

    CONFIG is a name from `twins-dense configs list`, or a file: an MMEngine config, or a LazyConfig or YAML file of
    detectron2. With --data, the layout, the splits and the classes of your data are recognised, and the settings that
    depend on the data are chosen and shown with their reasons; options and overrides have the last word. The resolved
    config, checkpoints, metrics.json and the log are written to the work directory. At the end, the best checkpoint is
    evaluated, and report.html shows how good it is and what goes wrong. To use several processes, start MMEngine's
    configs with torchrun, and detectron2's configs with the last four options.

    \b
    Examples:
      twins-dense train torchvision/mask_rcnn_svt_small_1x --data my_data --work-dir runs/mine
      twins-dense train mmseg/semantic_fpn_svt_small_80k --data my_data --weights svt_small.in1k-mmpretrain
      twins-dense train torchvision/mask_rcnn_svt_small_1x --data new --init runs/mine/epoch_12.pth --freeze backbone
      twins-dense train torchvision/mask_rcnn_svt_small_1x --data-root data/coco --weights svt_small.in1k-mmpretrain
      twins-dense train CONFIG train_dataloader.batch_size=4 optim_wrapper.optimizer.lr=1e-4 --work-dir runs/a
      twins-dense train CONFIG --work-dir runs/a --resume
      torchrun --nproc_per_node=2 -m twins_dense train CONFIG
      twins-dense train detectron2/mask_rcnn_svt_small_1x --num-gpus 8 --data-root data/coco
    """
    from ..frameworks import console, open_config
    from ..frameworks.options import MonitoringOptions, TrainingOptions
    from ..frameworks.own_data import plan_run
    from ..frameworks.work_dir import for_training

    if is_first_process():
        console.show_on(sys.stdout)
    training = TrainingOptions(**take_options(TrainingOptions, options))
    monitoring = MonitoringOptions(**take_options(MonitoringOptions, options))
    check_data_options(data_dir, data_root)
    engine, loaded = open_config(
        config, overrides, data_root=data_root, skip_bad=skip_bad, strict=strict, allow_outside=allow_outside
    )
    work_dir = work_dir or str(engine.default_work_dir(loaded))
    if data_dir is not None:
        for_training(work_dir, resume)  # before annotations of an earlier run could be replaced
        plan = plan_run(data_dir, training, out=Path(work_dir) / "data", skip_bad=skip_bad)
        engine.set_data(loaded, plan.data)
        training = plan.options
        print_sections(plan.sections)
    engine.set_training(loaded, training)
    engine.set_monitoring(loaded, monitoring)
    if amp:
        engine.set_amp(loaded)
    launch = {name: value for name, value in options.items() if value is not None}
    evaluated = copy.deepcopy(loaded)  # training changes the config
    engine.train(loaded, work_dir, resume=resume, launch=launch)
    report = None if no_report else _report(engine, evaluated, work_dir, launch)
    if is_first_process():
        if report is None and (Path(work_dir) / "report.html").is_file():
            renew = shlex.join(["twins-dense", "eval", work_dir]), shlex.join(["twins-dense", "report", work_dir])
            click.echo(f"report.html is older than this training: renew it by `{renew[0]}` and `{renew[1]}`")
        files = "the checkpoints, the log and metrics.json"
        click.echo(f"done: {work_dir} contains {files}{f'; the report is {report}' if report else ''}")


def _report(engine: Any, config: Any, work_dir: str, launch: dict[str, Any]) -> Path | None:
    """Write the report of a finished run; if that fails, warn, because the training has succeeded."""
    from ..inference.run_report import report_run

    try:
        return report_run(engine, config, work_dir, launch=launch)
    except Exception as error:
        # Every process warns, because the first one may only notice that another has stopped.
        click.echo(f"warning: there is no report ({one_line(error)})", err=True)
        return None
