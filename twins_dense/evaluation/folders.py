"""The folders of the evaluations of a training run.

`train` evaluates the best checkpoint into `RUN/evaluation`; each `eval` makes a new folder in `RUN_eval`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .record import NAME as RECORD_NAME

OWN_NAME = "evaluation"
_SUFFIX = "_eval"


def parent_of_evaluations(run: Path) -> Path:
    """Return the folder beside a run in which its evaluations lie."""
    run = run.resolve()
    return run.with_name(f"{run.name}{_SUFFIX}")


def runs_beside(evaluation: Path) -> list[Path]:
    """Return the folders that may be the run of an evaluation, judging by where the evaluation lies."""
    parent = evaluation.resolve().parent
    return [parent, parent.with_name(parent.name.removesuffix(_SUFFIX))]


def has_record(folder: Path) -> bool:
    """Return whether a folder contains the record of an evaluation, finished or not."""
    return _about(folder).is_file()


def newest_first(folders: Iterable[Path]) -> list[Path]:
    """Return those of some folders that contain a record, the newest first."""
    return sorted(filter(has_record, folders), key=lambda folder: _about(folder).stat().st_mtime_ns, reverse=True)


def evaluations_of(run: Path) -> list[Path]:
    """Return the evaluations of a run, finished or not: its own one first, and then the others, the newest first."""
    own = run / OWN_NAME
    return [*([own] if has_record(own) else []), *newest_first(parent_of_evaluations(run).glob("*"))]


def _about(folder: Path) -> Path:
    return folder / RECORD_NAME / "about.json"
