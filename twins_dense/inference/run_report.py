"""The report that `train` writes at its end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distributed import is_first_process, wait_for_all
from ..errors import TwinsError, requires_extra
from ..evaluation.folders import OWN_NAME
from ..evaluation.record import read_record
from ..frameworks import Engine
from ..frameworks.console import logger
from ..frameworks.work_dir import best_checkpoint


def report_run(
    engine: Engine, config: Any, work_dir: str | Path, *, launch: Mapping[str, Any] | None = None
) -> Path | None:
    """Evaluate the best checkpoint of a finished run, else its last, and write `report.html` to its work directory.

    The results of the evaluation are in the folder `evaluation`. In a group of processes, all of them call this
    function, and the first one writes the report.

    Args:
        engine: Engine of the run.
        config: Config from `load_config` of the engine; it is changed in place.
        work_dir: Work directory of the run.
        launch: Options for running several processes.

    Returns:
        The path of the report, or `None` in all processes but the first.

    Raises:
        TwinsError: If the run cannot be evaluated.
    """
    with requires_extra("report"):
        from ..evaluation.report.build import write_report

    wait_for_all()  # until the first process has written the last checkpoint
    checkpoint = best_checkpoint(work_dir)
    folder = Path(work_dir) / OWN_NAME
    is_first = is_first_process() and not (launch or {}).get("machine_rank")
    if is_first:
        logger.info(f"evaluation of {checkpoint.name} for the report")
        if not _is_up_to_date(folder, checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
    wait_for_all()
    engine.evaluate(config, checkpoint, folder, launch=launch)
    wait_for_all()  # until every process has written its part of the record
    return write_report(work_dir) if is_first else None


def _is_up_to_date(folder: Path, checkpoint: Path) -> bool:
    """Return whether a folder contains an evaluation of the present bytes of a checkpoint."""
    try:
        return read_record(folder).is_of(checkpoint)
    except TwinsError:  # there is no record, or it is broken
        return False
