"""Check the work directory of a run, and find its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import TwinsError, shown
from ..evaluation.folders import newest_first
from ..evaluation.metrics_file import NAME as METRICS_NAME
from ..evaluation.record import read_record
from ..stopping import Stopped
from .console import short_path

STOPPED_NAME = "stopped.pth"  # checkpoint of a run that SIGTERM has ended
_POINTER = "last_checkpoint"  # both MMEngine and detectron2 write it


def for_training(work_dir: str | Path, resume: bool) -> Path:
    """Check and return the folder of a training run that starts or, if `resume` is true, continues.

    Raises:
        TwinsError: if it is a file, if it already contains a run and `resume` is false, or if `resume` is true and it
            contains no run.
    """
    folder = _folder(work_dir)
    if resume and not (folder / _POINTER).is_file():
        raise TwinsError(f"work directory {str(work_dir)!r} contains no run to resume: start one without --resume")
    if not resume and (folder / _POINTER).exists():
        raise TwinsError(
            f"work directory {str(work_dir)!r} already contains a run: add --resume to continue it, "
            "or choose another --work-dir"
        )
    return folder


def for_evaluation(work_dir: str | Path) -> Path:
    """Check and return the folder for the results of an evaluation.

    Raises:
        TwinsError: if it is a file or contains a training run.
    """
    folder = _folder(work_dir)
    if (folder / _POINTER).exists():
        raise TwinsError(f"work directory {str(work_dir)!r} contains a training run: choose another --work-dir")
    return folder


def unfinished_evaluation(candidates: Iterable[Path], checkpoint: str | Path) -> Path | None:
    """Return the newest of some folders that contains an interrupted evaluation of a checkpoint, or `None`.

    Args:
        candidates: Folders, which need not be folders of evaluations.
        checkpoint: Path or catalog name of the checkpoint. Only its name counts, because runs can be moved.
    """
    for folder in newest_first(folder for folder in candidates if not (folder / METRICS_NAME).is_file()):
        if Path(read_record(folder).about.checkpoint).name == Path(checkpoint).name:
            return folder
    return None


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint to resume from.

    Raises:
        TwinsError: if it is missing.
    """
    pointer = folder / _POINTER
    name = pointer.read_bytes().decode(errors="replace").strip()
    path = folder / Path(name).name  # ignore its folder, which may have been moved
    if not os.path.isfile(path):
        raise TwinsError(
            f"{pointer} names {shown(name)!r}, which does not exist: write the name of another checkpoint to that file"
        )
    return path


def stopped_after(work_dir: Path, iteration: int) -> Stopped:
    """Return the exception that ends a run after its checkpoint of an iteration is written."""
    return Stopped(f"{short_path(work_dir)} contains a checkpoint of iteration {iteration}; add --resume to continue")


def best_checkpoint(work_dir: str | Path) -> Path:
    """Return the best checkpoint of a run, or its last one if it kept no best one.

    MMEngine calls the best checkpoint `best_METRIC_epoch_N.pth` or `best_METRIC_iter_N.pth`, detectron2
    `model_best.pth`. The newest is returned if there are several.

    Raises:
        TwinsError: if the folder contains no run.
    """
    folder = _folder(work_dir)
    best = [*folder.glob("best_*.pth"), *folder.glob("model_best.pth")]
    if best:
        return max(best, key=lambda path: path.stat().st_mtime_ns)
    if not (folder / _POINTER).is_file():
        raise TwinsError(f"work directory {str(work_dir)!r} contains no checkpoint: name the folder of a training run")
    return last_checkpoint(folder)


def _folder(work_dir: str | Path) -> Path:
    if Path(work_dir).exists() and not Path(work_dir).is_dir():
        raise TwinsError(f"work directory {str(work_dir)!r} is a file: choose a folder")
    return Path(work_dir)
