"""`twins-dense eval`: evaluate a checkpoint."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..distributed import from_first_process, is_first_process
from ..errors import TwinsError
from ..stopping import Stopped
from .options import check_data_options, data_options, launch_options, own_data_option, parse_source


@click.command("eval", short_help="Evaluate a checkpoint.")
@click.argument("arguments", nargs=-1, required=True, metavar="[CONFIG] MODEL [KEY=VALUE]...")
@click.option("--work-dir", help="Folder for the results.  [default: WORK DIRECTORY OF TRAINING_eval/TIME]")
@click.option("--tta", is_flag=True, help="Average over several sizes and flips (mmsegmentation's configs only).")
@click.option(
    "--resume", is_flag=True, help="Continue the last interrupted evaluation of MODEL, or that in --work-dir."
)
@click.option("--detections", is_flag=True, help="Also write detections.json, a COCO results file.")
@click.option("--label-maps", is_flag=True, help="Also write the predicted label maps as PNG files.")
@own_data_option
@data_options
@launch_options
def command(
    arguments: tuple[str, ...],
    work_dir: str | None,
    tta: bool,
    resume: bool,
    detections: bool,
    label_maps: bool,
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
    data, or the same as for validation, its `val_` settings apply. The results are written to a new folder beside the
    run: metrics.json (scores as fractions), a record for `twins-dense report`, the resolved config and the log.

    An interrupted evaluation continues with --resume, which needs the same data and options.

    \b
    Examples:
      twins-dense eval runs/mine
      twins-dense eval runs/mine/epoch_12.pth --data other_photos
      twins-dense eval runs/mine --detections --resume
      twins-dense eval mmseg/upernet_svt_small_160k CHECKPOINT --tta
      twins-dense eval CONFIG CHECKPOINT val_evaluator.backend=pycocotools
      twins-dense eval detectron2/mask_rcnn_svt_small_1x work_dirs/a/model_final.pth --data-root data/coco
    """
    from ..evaluation.record import read_record
    from ..evaluation.result_files import write_detections, write_label_maps
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
    for option, is_wanted, task in (
        ("--detections", detections, "detection"),
        ("--label-maps", label_maps, "segmentation"),
    ):
        if is_wanted and engine.task_of(config) != task:
            raise TwinsError(f"{option}: this is a {engine.task_of(config)} model; leave the option out")
    folder = _folder(engine, config, checkpoint, work_dir, resume)
    work_dir = from_first_process("work_dir", folder) if work_dir is None else folder
    if data_dir is not None:
        from ..data.layouts import recognise
        from ..frameworks.work_dir import for_evaluation

        for_evaluation(work_dir)  # before annotations of an earlier run could be replaced
        engine.set_data(config, recognise(data_dir, out=Path(work_dir) / "data", skip_bad=skip_bad))
    try:
        metrics = engine.evaluate(
            config, checkpoint, work_dir, launch={k: v for k, v in launch.items() if v is not None}
        )
    except KeyboardInterrupt:
        _explain_interruption(work_dir)
        raise
    if not is_first_process() or launch["machine_rank"]:
        return
    click.echo(console.evaluation_table(metrics))
    for is_wanted, write in ((detections, write_detections), (label_maps, write_label_maps)):
        if is_wanted:
            click.echo(f"{write(read_record(work_dir), Path(work_dir))} contains the predictions")
    click.echo(f"{Path(work_dir) / 'metrics.json'} contains all scores")


def _folder(engine: Any, config: Any, checkpoint: str | Path, work_dir: str | None, resume: bool) -> str:
    """Return the folder for the results: a new one beside the run, unless the user has chosen one or resumes."""
    from ..evaluation.folders import parent_of_evaluations
    from ..frameworks.work_dir import unfinished_evaluation

    is_file = Path(checkpoint).is_file()
    run = Path(checkpoint).resolve().parent if is_file else Path(os.path.abspath(engine.default_work_dir(config)))
    parent = parent_of_evaluations(run)
    if resume:
        candidates = parent.glob("*") if work_dir is None else [Path(work_dir)]
        found = unfinished_evaluation(candidates, checkpoint)
        if found is None:
            place = os.path.relpath(parent) if work_dir is None else work_dir
            raise TwinsError(
                f"--resume: {place!r} contains no interrupted evaluation of {str(checkpoint)!r}; leave out --resume"
            )
        return os.path.relpath(found) if work_dir is None else work_dir
    return os.path.relpath(parent / time.strftime("%Y%m%d_%H%M%S")) if work_dir is None else work_dir


def _explain_interruption(work_dir: str) -> None:
    """Raise `Stopped` with the number of finished images of an interrupted evaluation, if it is recorded."""
    from ..evaluation.record import read_record

    with contextlib.suppress(TwinsError):  # no record
        record = read_record(work_dir)
        count = f"{len(record.entries)} of {record.about.num_images} images are finished"
        raise Stopped(f"{count} in {work_dir}; add --resume to continue")
